"""The table of variants: what is fitted, or scored in another way, and why."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from anomaly_ae.config import PICKED_PRESETS, Config, deciding_settings, load_config
from anomaly_ae.errors import AnomalyAEError, ConfigError

KEYS = ("why", "base", "overrides", "scoring_only_of")
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Variant:
    """One line of the table.

    Attributes
    ----------
    source : str or Path
        "auto", the name of a preset, or a TOML file.
    overrides : tuple of str
        ``section.key=value``; of a score-only variant those of the fit that it shares, and then its own.
    scoring_only_of : str
        The variant whose fit it shares; "" where it is fitted itself.
    """

    name: str
    why: str
    source: str | Path
    overrides: tuple[str, ...] = ()
    scoring_only_of: str = ""

    def config(self, preset: str, seed: int) -> Config:
        """Return all settings; ``preset`` is what fit has picked, where the source is "auto"."""
        return load_config(preset if self.source == AUTO else self.source, [f"seed={seed}", *self.overrides])

    @property
    def settings_sha256(self) -> str:
        """Hash of every setting that the variant may come to, so that a changed preset is a changed variant.

        A setting that came later changes nothing while it says what was done before.
        """
        configs = [self.config(preset, 0) for preset in (PICKED_PRESETS if self.source == AUTO else ("",))]
        settings = [{s.name: _deciding(getattr(c, s.name)) for s in fields(c)} for c in configs]
        return hashlib.sha256(json.dumps([self.scoring_only_of, settings], sort_keys=True).encode()).hexdigest()


def read_variants(path: Path) -> dict[str, Variant]:
    """Read and check the whole table: what is wrong with it is said before anything is computed.

    Raises
    ------
    ConfigError
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the variants in {path}", str(error), "mend that file") from error
    for name, values in table.items():
        _check_keys(name, values)
    fitted = {name: _fitted(name, v, path.parent) for name, v in table.items() if "scoring_only_of" not in v}
    variants = {name: fitted.get(name) or _score_only(name, values, table, fitted) for name, values in table.items()}
    for variant in variants.values():
        _check_settings(variant)
    return variants


def _check_keys(name: str, values: Any) -> None:
    if not isinstance(values, dict) or not values.get("why"):
        raise ConfigError(f"variant '{name}' says no 'why'", "a table without reasons is soon a riddle", "add a line")
    unknown = sorted(set(values) - set(KEYS))
    if unknown:
        raise ConfigError(f"variant '{name}': unknown key '{unknown[0]}'", "", f"known: {', '.join(KEYS)}")


def _fitted(name: str, values: Mapping[str, Any], folder: Path) -> Variant:
    base = values.get("base", AUTO)
    return Variant(name, values["why"], folder / base if base.endswith(".toml") else base, _overrides(values))


def _score_only(
    name: str, values: Mapping[str, Any], table: Mapping[str, Any], fitted: Mapping[str, Variant]
) -> Variant:
    of, own = values["scoring_only_of"], _overrides(values)
    if "base" in values:
        raise ConfigError(f"variant '{name}' has a base", f"its base is the fit of '{of}'", "remove the line")
    if of not in table:
        raise ConfigError(f"variant '{name}': no variant '{of}'", "", f"one of: {', '.join(fitted)}")
    if of not in fitted:
        shared = table[of]["scoring_only_of"]
        raise ConfigError(f"variant '{name}': '{of}' has no fit of its own", f"it shares that of '{shared}'", "name it")
    for override in own:
        if not override.startswith("scoring."):
            why = "it shares the fit, and this setting would change it"
            raise ConfigError(f"variant '{name}' overrides {override}", why, "override settings of [scoring] only")
    return Variant(name, values["why"], fitted[of].source, (*fitted[of].overrides, *own), of)


def _overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(values.get("overrides", ()))


def _deciding(section: Any) -> Any:
    return deciding_settings(section) if is_dataclass(section) else section


def _check_settings(variant: Variant) -> None:
    try:
        variant.settings_sha256  # noqa: B018  (reads every setting)
    except AnomalyAEError as error:
        raise ConfigError(f"variant '{variant.name}': {error.what}", error.why, error.fix) from error
