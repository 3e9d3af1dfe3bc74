"""Order, bounds and failures of the parallel reader; crops of the image store against the images themselves."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from anomaly_ae import loading
from anomaly_ae.errors import AnomalyAEError, DataError, OutputError, UnreadableImageError
from anomaly_ae.loading import ImageStore, in_order, read_sample, torch_pixels, use_readers
from anomaly_ae.prepare import Prepared
from anomaly_ae.records import FloatArray, Image, PixelArray, Sample

CPU = torch.device("cpu")
LIMITS = np.array([[0.0, 1.0]])


# --- reading in other processes ---


def samples_of(folder: Path) -> list[Sample]:
    """Two images, one with a mask of what is valid, and a damaged one."""
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 60_000, (8, 9), np.uint16)
        Picture.fromarray(pixels).save(folder / f"{number}.png")
    Picture.fromarray(np.eye(8, 9, dtype=np.uint8)).save(folder / "valid.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:50])
    rows = (("0.png", None), ("1.png", folder / "valid.png"), ("cut.png", None))
    return [Sample(f"row {name}", name, (folder / name,), valid=valid) for name, valid in rows]


def everything(samples: list[Sample]) -> list[tuple[object, ...]]:
    return [
        (result.source, result.pixels.tolist(), None if result.valid is None else result.valid.tolist())
        if isinstance(result, Image)
        else (type(result), str(result))
        for _, result in in_order(samples, read_sample)
    ]


def test_other_processes_read_the_same_images_and_fail_in_the_same_words(tmp_path: Path) -> None:
    use_readers(2)
    try:
        found = everything(samples_of(tmp_path))
    finally:
        use_readers(0)
    assert found == everything(samples_of(tmp_path))
    assert found[-1][0] is UnreadableImageError


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what a process has loaded")
def test_readers_do_without_torch(tmp_path: Path) -> None:
    """It takes a process two seconds and 200 MiB to import it."""
    use_readers(1)
    try:
        read_sample(samples_of(tmp_path)[0])
        [reader] = multiprocessing.active_children()
        assert "libtorch" not in Path(f"/proc/{reader.pid}/maps").read_text()
    finally:
        use_readers(0)


def test_a_reader_that_dies_ends_no_run(tmp_path: Path) -> None:
    samples = samples_of(tmp_path)
    use_readers(1)
    try:
        assert isinstance(read_sample(samples[0]), Image)
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        assert [item[0] for item in everything(samples)] == ["row 0.png", "row 1.png", UnreadableImageError]
    finally:
        use_readers(0)


# --- in_order ---


def test_results_come_in_the_order_of_the_items_whoever_finishes_first() -> None:
    last_is_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert last_is_done.wait(10)  # the first item ends after the second
        else:
            last_is_done.set()
        return item * item

    with_threads = in_order(range(20), work, lookahead=4)
    assert list(with_threads) == [(i, i * i) for i in range(20)]


def test_at_most_lookahead_items_are_drawn_ahead_of_the_consumer() -> None:
    drawn = 0

    def source() -> Iterator[int]:
        nonlocal drawn
        for number in range(1000):
            drawn += 1
            yield number

    results = in_order(source(), lambda item: item, lookahead=5)
    for consumed in range(1, 20):
        next(results)
        assert consumed <= drawn <= consumed + 5
    results.close()
    assert drawn < 30


def test_expected_errors_are_values_in_their_place() -> None:
    def work(item: int) -> int:
        if item % 3 == 1:
            raise DataError(f"item {item}")
        return item

    results = [r for _, r in in_order(range(7), work)]
    assert [r.what if isinstance(r, AnomalyAEError) else r for r in results] == [
        0,
        "item 1",
        2,
        3,
        "item 4",
        5,
        6,
    ]


def test_a_bug_is_no_value() -> None:
    results = in_order([1, 0], lambda item: 1 // item)
    assert next(results) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_error_of_the_source_itself_comes_after_the_results_of_what_it_gave() -> None:
    def source() -> Iterator[int]:
        yield from range(6)
        raise RuntimeError("the list of files broke off")

    results = in_order(source(), lambda item: item, lookahead=4)
    assert [item for item, _ in islice(results, 6)] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(RuntimeError, match="broke off"):
        next(results)


def test_a_finished_result_does_not_wait_for_a_slow_source() -> None:
    finished: list[int] = []
    drawn = 0

    def source() -> Iterator[int]:
        nonlocal drawn
        for number in range(6):
            drawn += 1
            yield number
            while number not in finished:  # a camera is slower than the work on its last frame
                time.sleep(0.01)
            time.sleep(0.05)

    results = in_order(source(), finished.append, lookahead=6)
    for n_consumed in range(1, 6):
        next(results)
        assert drawn <= n_consumed + 1
    results.close()


def test_what_is_left_of_a_generator_can_be_used_after_an_early_end() -> None:
    source = iter(range(9))
    generator = (item for item in source)
    results = in_order(generator, lambda item: item, lookahead=2)
    next(results)
    results.close()
    del results
    assert list(generator)[-1] == 8


@pytest.mark.timeout(20)
def test_a_consumer_that_stops_early_neither_hangs_nor_leaves_work_behind() -> None:
    started: list[int] = []
    n_threads = threading.active_count()
    results = in_order(range(10_000), started.append, lookahead=8)
    for _ in zip(range(3), results, strict=False):
        pass
    results.close()
    assert threading.active_count() == n_threads
    assert len(started) <= 3 + 1 + 8


def test_nothing_in_nothing_out() -> None:
    assert list(in_order([], lambda item: item)) == []


# --- torch_pixels ---


@pytest.mark.parametrize(
    "name", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]
)
def test_every_extreme_value_of_a_type_survives_in_torch(name: str) -> None:
    dtype = np.dtype(name)
    info = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    top = 2**53 if name == "uint64" else info.max  # beyond it float64 has no whole numbers; no camera has them
    values = np.array([[[info.min, 0, 1, top]]], dtype)
    tensor = torch_pixels(values)
    assert tensor.shape == values.shape
    assert [int(v) if dtype.kind in "iu" else float(v) for v in tensor.flatten().tolist()] == values.flatten().tolist()
    assert (tensor + 1).dtype == tensor.dtype  # torch can calculate with it


def test_all_16_bit_values_survive_in_torch() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)
    assert np.array_equal(torch_pixels(values).numpy(), values)


def test_read_only_and_transposed_pixels_are_copied() -> None:
    values = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    values.setflags(write=False)
    tensor = torch_pixels(values.transpose(0, 2, 1))
    tensor += 1
    assert values.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert tensor.tolist() == [[[1, 4], [2, 5], [3, 6]]]


# --- read_sample ---


def sample_of(folder: Path, pixels: PixelArray, mask: PixelArray | None = None) -> Sample:
    Picture.fromarray(pixels).save(folder / "image.png")
    if mask is not None:
        Picture.fromarray(mask.astype(np.uint8) * 255).save(folder / "valid.png")
    valid = None if mask is None else folder / "valid.png"
    return Sample("part 7", "image.png", (folder / "image.png",), valid=valid)


def test_the_valid_mask_of_a_row_is_joined_with_the_alpha_channel(tmp_path: Path) -> None:
    rgba = np.full((4, 6, 4), 90, np.uint8)
    rgba[..., :3] = np.arange(3) * 40
    rgba[..., 3] = 255
    rgba[0, :, 3] = 0
    mask = np.ones((4, 6), bool)
    mask[:, 0] = False
    image = read_sample(sample_of(tmp_path, rgba, mask))
    expected = mask.copy()
    expected[0] = False
    assert image.valid is not None
    assert np.array_equal(image.valid, expected)
    assert image.source == "part 7"


def test_a_valid_mask_that_leaves_nothing_is_an_unreadable_image(tmp_path: Path) -> None:
    sample = sample_of(tmp_path, np.zeros((4, 6), np.uint8), np.zeros((4, 6), bool))
    with pytest.raises(UnreadableImageError, match=r"image\.png: no valid pixel: .*valid\.png"):
        read_sample(sample)


def test_values_outside_of_the_valid_mask_need_not_be_finite(tmp_path: Path) -> None:
    mask = np.ones((4, 6), bool)
    mask[:, 0] = False
    sample = sample_of(tmp_path, np.zeros((4, 6), np.uint8), mask)
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.save(tmp_path / "float.npy", np.where(mask, values, np.nan))
    sample = replace(sample, files=(tmp_path / "float.npy",))
    image = read_sample(sample)
    assert np.array_equal(image.pixels[0], np.where(mask, values, 0))
    assert image.valid is not None
    assert np.array_equal(image.valid, mask)

    values[1, 3] = np.inf  # inside
    np.save(tmp_path / "float.npy", np.where(mask, values, np.nan))
    with pytest.raises(UnreadableImageError, match="1 of 24 values are NaN or infinite"):
        read_sample(sample)


def test_of_several_files_the_valid_mask_covers_all(tmp_path: Path) -> None:
    mask = np.ones((4, 6), bool)
    mask[2] = False
    sample = sample_of(tmp_path, np.full((4, 6), 9, np.uint8), mask)
    np.save(tmp_path / "float.npy", np.where(mask, np.float32(0.5), np.inf))
    image = read_sample(replace(sample, files=(*sample.files, tmp_path / "float.npy")))
    assert np.array_equal(image.pixels[1], np.where(mask, 0.5, 0))
    assert (image.pixels[0] == 9).all(), "what is a number stays"


# --- ImageStore ---


def prepared(pixels: PixelArray, valid: PixelArray | None = None) -> Prepared:
    shape = pixels.shape[1:]
    return Prepared(pixels, np.ones(shape, bool) if valid is None else valid, shape, shape, None, None)


def coded_image(number: int, height: int, width: int, dtype: type) -> PixelArray:
    """Every pixel says which image it is of and where: number * 10000 + y * 100 + x, minus that in channel 1."""
    code = number * 10_000 + np.arange(height)[:, None] * 100 + np.arange(width)
    return np.stack([code, code + 7]).astype(dtype)


def coded_store(n_images: int = 6) -> ImageStore:
    """Images of different sizes and types; the limits of each carry its number."""
    dtypes = (np.uint16, np.int32, np.float32)
    images = [coded_image(i, 20 + 4 * i, 40 - 4 * i, dtypes[i % 3]) for i in range(n_images)]
    limits = [np.array([[i, i + 1.0]] * 2) for i in range(n_images)]
    masks = [(image[0].astype(int) % 3 != 0) if i % 2 else None for i, image in enumerate(images)]
    items = [(prepared(image, mask), limit) for image, mask, limit in zip(images, masks, limits, strict=True)]
    return ImageStore(items, n_images, CPU)


def small_memory(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    monkeypatch.setattr(loading, "free_memory_bytes", lambda: n_bytes)


@pytest.fixture(params=["in memory", "mapped from disk", "partly mapped"])
def any_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageStore]:
    if request.param == "mapped from disk":
        small_memory(monkeypatch, 1000)
    if request.param == "partly mapped":  # image 0 has 20 x 40 x 2 values of 4 bytes, the later ones have more
        small_memory(monkeypatch, int(6.1 * 20 * 40 * 2 * 4 / loading.SHARE_OF_MEMORY))
    with coded_store() as store:
        assert store.is_mapped == (request.param != "in memory")
        yield store


def test_crops_come_from_one_image_and_one_place(any_store: ImageStore) -> None:
    raw, valid, limits = any_store.crops(400, (16, 12), torch.Generator().manual_seed(0))
    assert raw.shape == (400, 2, 16, 12)
    assert valid.shape == (400, 1, 16, 12)
    assert limits.shape == (400, 2, 2)
    code = raw.long()
    number = code[:, 0, 0, 0] // 10_000
    top, left = code[:, 0, 0, 0] % 10_000 // 100, code[:, 0, 0, 0] % 100
    for i in range(400):
        expected = coded_image(int(number[i]), 60, 60, np.int64)[:, top[i] : top[i] + 16, left[i] : left[i] + 12]
        assert np.array_equal(code[i].numpy(), expected)
        mask = expected[:1] % 3 != 0 if number[i] % 2 else np.ones((1, 16, 12), bool)
        assert np.array_equal(valid[i].numpy(), mask)
    assert torch.equal(limits[:, 0, 0].long(), number)  # the limits belong to the image
    assert set(number.tolist()) == set(range(6))
    of_first = number == 0  # 20 x 40: all 5 x 29 places, first and last included
    assert (int(top[of_first].min()), int(top[of_first].max())) == (0, 4)
    assert int(left[of_first].max()) > 20


def test_mapped_images_of_odd_sizes_and_mixed_types_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    small_memory(monkeypatch, 1)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 100, (1, 5, 7)).astype(t) for t in (np.uint8, np.float64, np.uint8, np.int16, np.int64)]
    with ImageStore([(prepared(image), LIMITS) for image in images], len(images), CPU) as store:
        assert store.is_mapped
        for index, image in enumerate(images):
            raw = store.image(index)[0].numpy()
            assert raw.dtype == image.dtype
            assert np.array_equal(raw, image)


def test_where_the_images_lie_changes_no_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    def crops(n_bytes: int) -> list[torch.Tensor]:
        small_memory(monkeypatch, n_bytes)
        with coded_store() as store:
            return [*store.crops(20, (16, 12), torch.Generator().manual_seed(3)), *store.image(4)]

    for in_memory, mapped in zip(crops(2**40), crops(1), strict=True):
        assert in_memory.dtype == mapped.dtype
        assert torch.equal(in_memory, mapped)


def test_the_generator_alone_decides_on_the_crops() -> None:
    with coded_store() as store:
        first, again, other = (store.crops(8, (16, 12), torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mixed_types_are_cropped_in_one_that_holds_all_their_values() -> None:
    top = np.full((1, 16, 16), 65535, np.uint16)
    bottom = np.full((1, 16, 16), -32768, np.int16)
    with ImageStore([(prepared(top), LIMITS), (prepared(bottom), LIMITS)], 2, CPU) as store:
        raw, _, _ = store.crops(40, (16, 16), torch.Generator().manual_seed(0))
    assert sorted(set(raw.flatten().tolist())) == [-32768, 65535]


def test_the_crop_fits_the_smallest_image_and_is_a_multiple() -> None:
    with coded_store() as store:  # heights 20 to 40, widths 40 to 20
        assert store.crop_shape(96, 8) == (16, 16)
        assert store.crop_shape(96, 4) == (20, 20)
        assert store.crop_shape(10, 4) == (8, 8)


def test_one_small_image_in_twenty_narrows_no_crop_and_is_padded_where_nothing_is_valid() -> None:
    images = [np.full((1, 64, 48), 7, np.uint8) for _ in range(19)]
    images.append(np.arange(20 * 60, dtype=np.int16).reshape(1, 20, 60) + 100)  # too low, and wide enough
    with ImageStore([(prepared(image), LIMITS) for image in images], 20, CPU) as store:
        assert store.crop_shape(96, 16) == (64, 48)
        raw, valid, _ = store.crops(200, (64, 48), torch.Generator().manual_seed(0))
    assert raw.shape == valid.shape == (200, 1, 64, 48)
    small = (raw > 7).flatten(1).any(dim=1)
    assert 0 < small.sum() < 50
    assert valid[~small].all()
    assert valid[small, :, :20].all()
    assert not valid[small, :, 20:].any()
    for crop in raw[small, 0]:
        left = int(crop[0, 0]) - 100
        expected = images[-1][0, :, left : left + 48]
        assert np.array_equal(crop.numpy(), np.concatenate([expected, np.repeat(expected[-1:], 44, axis=0)]))
    assert len({int(crop[0, 0]) for crop in raw[small, 0]}) > 1, "wherever there is room, the place is random"


def test_more_than_one_small_image_in_twenty_narrows_the_crop() -> None:
    sides = [64] * 19 + [32] * 2
    with ImageStore([(prepared(np.zeros((1, s, 64), np.uint8)), LIMITS) for s in sides], len(sides), CPU) as store:
        assert store.crop_shape(96, 16) == (32, 64)


def test_the_file_of_mapped_images_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_memory(monkeypatch, 1)
    monkeypatch.setattr(loading.tempfile, "tempdir", str(tmp_path))
    with coded_store():
        assert [f.name for f in tmp_path.glob("*/*")] == ["images.raw"]
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_removed_when_the_store_is_never_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_memory(monkeypatch, 1)
    monkeypatch.setattr(loading.tempfile, "tempdir", str(tmp_path))

    def images() -> Iterator[tuple[Prepared, FloatArray]]:
        yield prepared(coded_image(0, 16, 16, np.uint16)), LIMITS
        raise DataError("the next image is gone")

    with pytest.raises(DataError, match="gone") as caught:
        ImageStore(images(), 2, CPU)
    del caught  # its traceback holds the half store
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    small_memory(monkeypatch, 1)
    with monkeypatch.context() as patch:
        patch.setattr(loading.Path, "open", _raises(OSError(28, "No space left on device")))
        with pytest.raises(OutputError, match=r"images\.raw: No space left"):
            coded_store()


def _raises(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.skipif(os.name == "nt", reason="limits on open files are set the POSIX way")
def test_more_mapped_images_than_open_files_are_allowed() -> None:
    script = """
        import resource
        import numpy as np, torch
        from anomaly_ae import loading
        from anomaly_ae.prepare import Prepared

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        loading.free_memory_bytes = lambda: 1
        one = np.ones((8, 8), bool)
        images = ((Prepared(np.full((1, 8, 8), i), one, (8, 8), (8, 8), None, None), np.eye(2)) for i in range(99))
        with loading.ImageStore(images, 99, torch.device("cpu")) as store:
            assert store.is_mapped
            assert [int(store.image(i)[0][0, 7, 7]) for i in range(99)] == list(range(99))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


MIB = 2**20
IN_CONTAINER = {
    "version 2": {
        "proc/self/cgroup": "0::/jobs/mine\n",
        "cgroup/jobs/memory.max": f"{900 * MIB}\n",  # a limit above counts, too
        "cgroup/jobs/memory.current": f"{700 * MIB}\n",
        "cgroup/jobs/memory.stat": f"anon 1\ninactive_file {100 * MIB}\nactive_file 5\n",
        "cgroup/jobs/mine/memory.max": "max\n",
        "cgroup/jobs/mine/memory.current": "5\n",
    },
    "version 1": {
        "proc/self/cgroup": "3:cpu,cpuacct:/other\n2:memory:/docker/ab\n1:name=systemd:/other\n",
        "cgroup/memory/memory.limit_in_bytes": f"{900 * MIB}\n",  # mounted at the root, as in a container
        "cgroup/memory/memory.usage_in_bytes": f"{700 * MIB}\n",
        "cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {100 * MIB}\n",
        "cgroup/memory/other/memory.limit_in_bytes": "9\n",
        "cgroup/memory/other/memory.usage_in_bytes": "9\n",
    },
}


def system_with(files: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(loading, "PROC", folder / "proc")
    monkeypatch.setattr(loading, "CGROUPS", folder / "cgroup")


@pytest.mark.parametrize("version", IN_CONTAINER)
@pytest.mark.parametrize(("available_mib", "free_mib"), [(5000, 900 - 700 + 100), (50, 50)])
def test_free_memory_is_what_the_system_and_the_container_both_leave(
    version: str, available_mib: int, free_mib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = f"MemTotal:  99999999 kB\nMemFree:  1 kB\nMemAvailable:  {available_mib * 1024} kB\n"
    system_with({"proc/meminfo": meminfo, **IN_CONTAINER[version]}, tmp_path, monkeypatch)
    assert loading.free_memory_bytes() == free_mib * MIB


def test_where_no_memory_is_told_four_gib_are_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system_with({}, tmp_path, monkeypatch)
    assert loading.free_memory_bytes() == 4 * 2**30


def test_free_memory_is_a_plausible_number() -> None:
    assert 2**20 < loading.free_memory_bytes() < 2**50
