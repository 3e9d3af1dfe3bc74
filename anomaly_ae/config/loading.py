"""Reading settings: presets and TOML files, overrides, checks of every key and range, and what model files say."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from anomaly_ae.config.sections import MEASURES, OWN_LIMITS, PRESETS, Config
from anomaly_ae.errors import ConfigError


def load_config(source: str | Path = "default", overrides: Iterable[str] = ()) -> Config:
    """Read a preset by name, or a TOML file, and apply ``section.key=value`` overrides.

    Raises
    ------
    ConfigError
        Unknown preset, key or value out of range.

    >>> load_config("smoke", ["training.steps=3"]).training.steps
    3
    """
    values = _read_toml(source)
    for override in overrides:
        _apply_override(values, override)
    return config_from_dict(values)


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Build a configuration from nested dictionaries; every key and range is checked."""
    config: Config = _build(Config, values, "")
    _check_combinations(config)
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return nested dictionaries that `config_from_dict` accepts."""
    return dataclasses.asdict(config)


def overridden(config: Config, overrides: Iterable[str]) -> Config:
    """Return a copy with ``section.key=value`` overrides applied."""
    values = config_to_dict(config)
    for override in overrides:
        _apply_override(values, override)
    return config_from_dict(values)


def with_values(config: Config, **sections: Mapping[str, Any]) -> Config:
    """Return a copy with some keys of some sections replaced: ``with_values(c, model={"n_channels": 3})``."""
    values = config_to_dict(config)
    for section, keys in sections.items():
        values[section] = {**values[section], **keys}
    return config_from_dict(values)


def of_channels(config: Config, n_channels: int) -> Config:
    """Return the configuration for images of so many channels: one alone has no hue."""
    scoring = {} if n_channels > 1 else {"chroma": 0.0}
    return with_values(config, model={"n_channels": n_channels}, scoring=scoring)


def model_file_config(values: Mapping[str, Any]) -> Config:
    """Build the configuration of a model file: a setting that came later than the file is what it did ``before``."""
    config = Config()
    completed = dict(values)
    for section in (f.name for f in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, f.name))):
        fields = dataclasses.fields(getattr(config, section))
        before = {f.name: f.metadata["before"] for f in fields if "before" in f.metadata}
        completed[section] = {**before, **values[section]}
    return config_from_dict(completed)


def deciding_settings(section: Any) -> dict[str, Any]:
    """Return the settings that a score depends on, by name.

    One that came after the first models is left out where it says what these did ``before``, so that a hash over the
    settings of an older model stays what it was.
    """
    fields = dataclasses.fields(section)
    values = {f.name: getattr(section, f.name) for f in fields}
    unchanged = {f.name for f in fields if "before" in f.metadata and values[f.name] == f.metadata["before"]}
    return {name: value for name, value in values.items() if name not in unchanged}


def preset_path(name: str) -> Path:
    """Return the TOML file of a preset: inside the package when installed, beside it in a checkout."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'", "", f"one of: {', '.join(PRESETS)}; or give a file.toml")
    package = Path(__file__).resolve().parent.parent
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return folder / f"{name}.toml"


def _read_toml(source: str | Path) -> dict[str, Any]:
    is_file = isinstance(source, Path) or str(source).endswith(".toml")
    path = Path(source) if is_file else preset_path(str(source))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}", str(error.strerror), "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid TOML", str(error), "mend that line") from error
    return {"preset": path.stem, **values}


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    section, _, name = key.strip().partition(".")
    if not separator:
        raise ConfigError(f"'{override}' is no setting", "", "write section.key=value, e.g. training.steps=500")
    if not name:
        values[section] = _parse_value(text.strip())
        return
    keys = values.setdefault(section, {})
    if not isinstance(keys, dict):
        raise ConfigError(f"'{override}' is no setting", f"{section} is no section", f"write {section}=VALUE")
    keys[name] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string: scoring.pooling=max


def _build(section: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(section)}
    hints = get_type_hints(section)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise _unknown_key(prefix, key, list(known))
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{key} is a section", f"found {value!r}", f"write {key}.NAME=VALUE")
            checked[key] = _build(hints[key], value, f"{prefix}{key}.")
        else:
            checked[key] = _check_value(prefix + key, value, hints[key], known[key].metadata)
    return section(**checked)


def _unknown_key(prefix: str, key: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    names = ", ".join(prefix + name for name in known)
    fix = f"did you mean '{prefix}{near[0]}'?" if near else f"known here: {names}"
    return ConfigError(f"unknown setting '{prefix}{key}'", "", fix)


def _check_value(key: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    accepted = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if float in accepted and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in accepted:
        names = " or ".join(t.__name__ for t in accepted if t is not type(None))
        fix = "write true or false" if bool in accepted else ""
        raise ConfigError(f"{key} = {value!r}", f"expected {names}, found {type(value).__name__}", fix)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} = {value}", "not finite", "give a number")
    if "range" in metadata:
        low, high = metadata["range"]
        if not low <= value <= high:
            raise ConfigError(f"{key} = {value}", f"outside of [{low}, {high}]", metadata["help"])
    if "choices" in metadata and value not in metadata["choices"]:
        raise ConfigError(f"{key} = {value!r}", "unknown", f"one of: {', '.join(metadata['choices'])}")
    return value


def _check_combinations(config: Config) -> None:
    intensity = config.intensity
    low, high = intensity.low, intensity.high
    if intensity.policy == "window" and (low is None or high is None or not low < high):
        raise ConfigError("intensity policy 'window'", f"needs low < high, found {low} and {high}")
    if intensity.exposure == "image" and intensity.policy in OWN_LIMITS:
        why, fix = "each image is scaled by itself already", "set intensity.exposure=off, or another policy"
        raise ConfigError(f"intensity.exposure = image with policy {intensity.policy}", why, fix)
    geometry = config.geometry
    if geometry.min_side_px > geometry.max_side_px:
        found = f"min_side_px = {geometry.min_side_px}, max_side_px = {geometry.max_side_px}"
        raise ConfigError("geometry: the smallest side is above the largest", found, "lower min_side_px")
    if geometry.align != "off" and config.model.spatial_dims != 2:
        raise ConfigError(f"geometry.align = {geometry.align}", "volumes cannot be aligned", "set geometry.align=off")
    for name, section in (("training", config.training), ("scoring", config.scoring)):
        if not any(getattr(section, key, 0) for key in MEASURES):
            raise ConfigError(f"all error weights of {name} are 0", "nothing would be measured", "set one, e.g. l1 = 1")
    if config.model.head_width and not config.training.repair:
        fix = "set training.repair=true, or model.head_width=0"
        raise ConfigError("model.head_width without training.repair", "the head learns from damage", fix)
    _check_scoring(config)
    if config.split.validation_share + config.split.calibration_share > 0.9:
        raise ConfigError("validation_share + calibration_share above 0.9", "too little is left for training")


def _check_scoring(config: Config) -> None:
    scoring = config.scoring
    if scoring.head and not config.model.head_width:
        fix = "set model.head_width, e.g. 24, or scoring.head=0"
        raise ConfigError(f"scoring.head = {scoring.head:g} without model.head_width", "there is no head", fix)
    if scoring.test_time_flips and not config.training.flip:
        raise ConfigError(
            "scoring.test_time_flips without training.flip",
            "mirrored images were not trained on, and would look anomalous",
            "set training.flip=true where mirrored images are as normal as the originals",
        )
    if scoring.pooling != "max" and (scoring.min_area_px or scoring.min_area_mm2 or scoring.hysteresis_low):
        why = "they decide by the strongest region, and this pooling by a share of the pixels"
        raise ConfigError(f"region rules with scoring.pooling = {scoring.pooling}", why, "set scoring.pooling=max")
