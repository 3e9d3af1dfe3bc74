"""The scores and maps of another tool: a table ``path,score``, and a folder of maps."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import AnomalyAEError, DataError, UnreadableImageError
from anomaly_ae.files import holds
from anomaly_ae.keeping import file_stem, why_left_out
from anomaly_ae.manifest.naming import is_public
from anomaly_ae.manifest.table import read_table
from anomaly_ae.metrics import PixelMap
from anomaly_ae.readers import read_image, read_mask
from anomaly_ae.records import BoolArray, Sample
from anomaly_ae.words import text_of

MAP_SUFFIXES = (".tiff", ".tif", ".npy", ".png")


@dataclass(frozen=True, slots=True, eq=False)
class TheirScores:
    """What a table says of samples.

    Attributes
    ----------
    scores : mapping of id to float
        Finite scores of samples of the manifest.
    missing : mapping of id to str
        Why a sample has none.
    n_unknown : int
        Rows of the table that are no sample of the manifest.
    """

    scores: Mapping[str, float]
    missing: Mapping[str, str]
    n_unknown: int


def read_their_scores(path: Path, samples: Sequence[Sample]) -> TheirScores:
    """Read a table with the columns ``path`` and ``score``, and find the samples that it speaks of.

    A path is the one in the manifest, its ``id``, or any path that leads to the same file, from the folder of the
    table, from the current folder or absolute. ``id``, where the table has that column, comes first.

    Raises
    ------
    DataError
        No such columns, two scores of one sample, or no row that is a sample.
    """
    rows = read_table(path)
    column = _score_column(path, rows[0].cells if rows else ())
    places = _places(samples)
    found: dict[str, str] = {}
    n_unknown = 0
    for row in rows:
        sample = _sample_of(row.cells, path.parent, places)
        if sample is None:
            n_unknown += 1
            continue
        if sample in found:
            what = f"{path}, row {row.number}: a second score of {sample}"
            raise DataError(what, "which one counts is unclear", "delete one row; frames are told apart by `id`")
        found[sample] = row.cells[column]
    if not found:
        raise _no_row(path, rows[0].cells["path"] if rows else "nothing", samples[0])
    numbers = {name: _number(text) for name, text in found.items()}
    missing = {s.id: f"no row in {text_of(path.name)}" for s in samples if s.id not in found}
    missing |= {name: f"its score is {found[name]!r}" for name, value in numbers.items() if not math.isfinite(value)}
    return TheirScores({n: v for n, v in numbers.items() if math.isfinite(v)}, missing, n_unknown)


def _score_column(path: Path, names: Collection[str]) -> str:
    """Return the column "score", or the one that differs from it in its letters alone."""
    found = [name for name in names if name.lower() == "score"]
    if "score" in found or len(found) == 1:
        return "score" if "score" in found else found[0]
    if found:
        raise DataError(f"{path} has the columns {' and '.join(found)}", "which one counts is unclear", "rename one")
    raise DataError(f"{path} has no column 'score'", "every row needs a path and a score", "name the column 'score'")


def _no_row(table: Path, example: str, sample: Sample) -> DataError:
    if is_public(sample.path):
        why, fix = "its paths lead to no file of it", "--identified lets it name images as their manifest does"
    else:
        why, fix = f"it names {example!r}", f"paths like {sample.path!r} are needed, or an `id` column"
    return DataError(f"{table} has no row of this data", why, fix)


def _places(samples: Sequence[Sample]) -> dict[str, str]:
    """Return the id of every name of a sample that is the name of no other."""
    names: dict[str, set[str]] = {}
    for sample in samples:
        own = {sample.id, sample.path}
        if len(sample.files) == 1:
            own.add(str(sample.files[0].resolve()))
        for name in own:
            names.setdefault(name, set()).add(sample.id)
    ids = {sample.id for sample in samples}
    return {
        name: name if name in ids else next(iter(own)) for name, own in names.items() if name in ids or len(own) == 1
    }


def _sample_of(cells: Mapping[str, str], folder: Path, places: Mapping[str, str]) -> str | None:
    text = cells["path"].replace("\\", "/")
    names = (cells.get("id", ""), cells["path"], text, str((folder / text).resolve()), str(Path(text).resolve()))
    return next((places[name] for name in names if name in places), None)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclass(slots=True)
class TheirMaps:
    """Anomaly maps in a folder, found by the path or the id of the image; read anew in every pass.

    A map is a TIFF, NPY or PNG of one channel on the grid of its image, higher = more anomalous; its name is the path
    of the image in the folder with another suffix, or the name that ``maps/`` of a run gives it.
    """

    folder: Path

    def find(self, sample: Sample) -> Path | None:
        """Return the file of the map of an image."""
        relative = Path(sample.path)
        stems = [file_stem(sample, is_taken=True), file_stem(sample)]
        stems += (
            [] if relative.is_absolute() or ".." in relative.parts else [sample.path, str(relative.with_suffix(""))]
        )
        candidates = (self.folder / f"{stem}{suffix}" for stem in stems for suffix in MAP_SUFFIXES)
        return next((path for path in candidates if holds(path.is_file)), None)

    def read(self, sample: Sample) -> PixelMap:
        """Read a map with its mask.

        Raises
        ------
        AnomalyAEError
            No map, one that cannot be read or has no rank, or masks of another size.
        """
        path = self.find(sample)
        if path is None:
            raise UnreadableImageError(f"no map of {sample.id}", f"none in {self.folder}", "name it like its image")
        pixels = read_image(path).pixels
        if len(pixels) != 1:
            raise UnreadableImageError(f"{path}: {len(pixels)} channels", "a map has one", "save it as grey")
        anomaly_map = np.asarray(pixels[0], np.float32)
        mask, valid = (_mask(file, sample, anomaly_map) for file in (sample.mask, sample.valid))
        if not np.isfinite(anomaly_map if valid is None else anomaly_map[valid]).all():
            raise UnreadableImageError(f"{path}: NaN or infinite values", "such pixels have no rank", "see the tool")
        return PixelMap(anomaly_map, mask, valid)

    def usable(self, samples: Sequence[Sample]) -> tuple[list[Sample], dict[str, list[str]]]:
        """Return the images whose map and mask can be used, and which are left out for which reason."""
        kept, left_out = [], dict[str, list[str]]()
        for sample in samples:
            why = self._problem(sample)
            if why:
                left_out.setdefault(why, []).append(sample.id)
            else:
                kept.append(sample)
        return kept, left_out

    def _problem(self, sample: Sample) -> str:
        if self.find(sample) is None:
            return "images without a map"
        try:
            return why_left_out(sample, self.read(sample).mask)
        except AnomalyAEError:
            return "images whose map or mask cannot be used"

    def maps(self, samples: Sequence[Sample]) -> Iterator[PixelMap]:
        """Yield the maps of usable samples."""
        return (self.read(sample) for sample in samples)

    def highest(self, samples: Sequence[Sample]) -> list[float] | None:
        """Return the largest valid pixel of every map; None where one is missing."""
        try:
            return [float(_valid_pixels(self.read(sample)).max(initial=-math.inf)) for sample in samples]
        except AnomalyAEError:
            return None


def _valid_pixels(pixel_map: PixelMap) -> npt.NDArray[np.float32]:
    return pixel_map.anomaly_map if pixel_map.valid is None else pixel_map.anomaly_map[pixel_map.valid]


def _mask(file: Path | None, sample: Sample, anomaly_map: npt.NDArray[np.float32]) -> BoolArray | None:
    return None if file is None else read_mask(file, anomaly_map.shape, sample.frame, sample.files[0])
