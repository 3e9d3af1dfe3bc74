"""Configuration: the presets, the ranges, and that nothing misspelt is ever ignored."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from anomaly_ae.config import (
    PRESETS,
    Config,
    config_from_dict,
    config_to_dict,
    load_config,
    preset_path,
    with_values,
)
from anomaly_ae.errors import ConfigError

CONFIGURATION = Path(__file__).resolve().parent.parent / "docs" / "reference" / "configuration.md"
DEFAULT = Config()
SECTIONS = [f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(getattr(DEFAULT, f.name))]


def keys_with(what: str) -> list[tuple[str, str, Any]]:
    """Every (section, key, metadata entry) whose field carries a "range" or "choices"."""
    return [
        (section, f.name, f.metadata[what])
        for section in SECTIONS
        for f in dataclasses.fields(getattr(DEFAULT, section))
        if what in f.metadata
    ]


# --- presets ---


def test_default_preset_says_what_the_code_says() -> None:
    assert load_config("default") == DEFAULT


def test_default_preset_names_every_key() -> None:
    named = tomllib.loads(preset_path("default").read_text(encoding="utf-8"))
    expected = config_to_dict(DEFAULT)
    del expected["preset"]
    for optional in ("low", "high"):  # TOML has no word for "none"
        del expected["intensity"][optional]
    assert {k: set(v) if isinstance(v, dict) else None for k, v in named.items()} == {
        k: set(v) if isinstance(v, dict) else None for k, v in expected.items()
    }


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_changes_what_it_names(name: str) -> None:
    named = tomllib.loads(preset_path(name).read_text(encoding="utf-8"))
    config = load_config(name)
    assert config.preset == name
    expected = config_to_dict(DEFAULT) | {"preset": name}
    for section, values in named.items():
        expected[section] = {**expected[section], **values} if isinstance(values, dict) else values
    assert config_to_dict(config) == expected


def test_every_preset_file_is_a_known_preset() -> None:
    assert {p.stem for p in preset_path("default").parent.glob("*.toml")} == set(PRESETS)


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="textur") as caught:
        load_config("textur")
    assert all(name in str(caught.value) for name in PRESETS)


# --- files ---


def test_file_takes_its_name_as_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 7\n[training]\nsteps = 11\n", encoding="utf-8")
    for source in (path, str(path)):
        config = load_config(source)
        assert (config.preset, config.seed, config.training.steps) == ("mine", 7, 11)
    assert dataclasses.replace(config.training, steps=DEFAULT.training.steps) == DEFAULT.training


@pytest.mark.parametrize("content", [b"steps = = 3", b"\xff\xfe[training]", b"[training]\nsteps = 1\nsteps = 2"])
def test_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no valid TOML") as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    for path in (tmp_path / "nowhere.toml", folder):
        with pytest.raises(ConfigError, match="cannot read") as caught:
            load_config(path)
        assert str(path) in str(caught.value)


# --- the page that documents them ---


def documented_rows() -> list[tuple[str, str]]:
    """Return section and table row of every setting, as docs/reference/configuration.md has to show them."""
    general = [f for f in dataclasses.fields(Config) if f.name not in SECTIONS]
    fields = [("", DEFAULT, f) for f in general]
    fields += [
        (name, getattr(DEFAULT, name), f) for name in SECTIONS for f in dataclasses.fields(getattr(DEFAULT, name))
    ]
    return [(name, _row(f.name, getattr(section, f.name), f.metadata)) for name, section, f in fields]


def _row(key: str, default: object, metadata: Mapping[str, Any]) -> str:
    limits = "any number" if default is None else "true, false" if isinstance(default, bool) else "any text"
    if "range" in metadata:
        limits = "{:,} to {:,}".format(*metadata["range"])
    if "choices" in metadata:
        limits = ", ".join(f"`{choice}`" for choice in metadata["choices"])
    shown = "none" if default in (None, "") else f"`{str(default).lower()}`"
    return f"| `{key}` | {shown} | {limits} | {metadata.get('help', 'where the settings came from')} |"


def test_page_shows_every_setting_with_its_default_and_nothing_else() -> None:
    page = CONFIGURATION.read_text(encoding="utf-8")
    sections = re.findall(r"^## (?:`(\w+)`|Without a section)\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)
    shown = [(name, row) for name, body in sections for row in re.findall(r"^\| `.*$", body, flags=re.MULTILINE)]
    assert shown == documented_rows()


def test_page_shows_what_every_preset_changes() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|([^|]*)\| [^|]+ \|$", CONFIGURATION.read_text(encoding="utf-8"), re.M)
    assert {name for name, _ in rows} >= set(PRESETS)
    for name in PRESETS:
        changes = re.findall(r"`([^`]+)`", dict(rows)[name])
        told = load_config("default", changes)
        assert dataclasses.replace(told, preset=name) == load_config(name)
        for change in changes:  # a change that changes nothing is none
            assert load_config("default", [change]) != DEFAULT, change


# --- unknown keys ---


@pytest.mark.parametrize(
    ("values", "wrong", "nearest"),
    [
        ({"training": {"step": 5}}, "training.step", "training.steps"),
        ({"trainig": {"steps": 5}}, "trainig", "training"),
        ({"scoring": {"smooth_sd": 1.0}}, "scoring.smooth_sd", "scoring.smooth_sd_px"),
        ({"sede": 3}, "sede", "seed"),
    ],
)
def test_unknown_key_names_the_nearest(values: dict[str, Any], wrong: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values)
    assert f"'{wrong}'" in caught.value.what
    assert f"'{nearest}'" in caught.value.fix


def test_unknown_key_without_a_near_one_lists_all() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"geometry": {"zzz": 1}})
    assert all(f"geometry.{f.name}" in caught.value.fix for f in dataclasses.fields(DEFAULT.geometry))


def test_section_that_is_a_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="training is a section"):
        config_from_dict({"training": 5})


# --- ranges and types ---


@pytest.mark.parametrize(
    ("section", "key", "limits"), keys_with("range"), ids=lambda v: v if isinstance(v, str) else ""
)
def test_range_is_closed_and_enforced(section: str, key: str, limits: tuple[float, float]) -> None:
    kind = type(getattr(getattr(DEFAULT, section), key))
    base = {"geometry": {"min_side_px": 16, "max_side_px": 8192}, "split": {"validation_share": 0.05}}
    if section == "training" and key == "l2":
        base["training"] = {"l1": 1.0}  # one loss at least has a weight
    if key == "head":
        base["model"] = {"head_width": 8}
    for limit, outside in zip(limits, (-1, 1), strict=True):
        values = {name: dict(keys) for name, keys in base.items()}
        values.setdefault(section, {})[key] = kind(limit)
        assert getattr(getattr(config_from_dict(values), section), key) == limit
        values[section][key] = kind(limit) + kind(outside)
        with pytest.raises(ConfigError, match=rf"{section}\.{key}"):
            config_from_dict(values)


@pytest.mark.parametrize(
    ("section", "key", "choices"), keys_with("choices"), ids=lambda v: v if isinstance(v, str) else ""
)
def test_choices_are_enforced(section: str, key: str, choices: tuple[str, ...]) -> None:
    window = {"low": 0.0, "high": 1.0} if key == "policy" else {}
    for choice in choices:
        assert getattr(getattr(config_from_dict({section: {key: choice, **window}}), section), key) == choice
    with pytest.raises(ConfigError) as caught:
        config_from_dict({section: {key: choices[0].upper()}})
    assert all(choice in caught.value.fix for choice in choices)


def test_seed_has_a_range() -> None:
    assert config_from_dict({"seed": 2**31 - 1}).seed == 2**31 - 1
    for seed in (-1, 2**31):
        with pytest.raises(ConfigError, match="seed"):
            config_from_dict({"seed": seed})


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("training", "steps", 2.5, "int"),
        ("training", "steps", "many", "int"),
        ("training", "steps", True, "int"),
        ("training", "flip", 1, "bool"),
        ("training", "flip", "yes", "bool"),
        ("training", "l1", True, "float"),
        ("training", "l1", [1.0], "float"),
        ("scoring", "pooling", 3, "str"),
        ("intensity", "low", "dark", "float"),
    ],
)
def test_wrong_type_is_refused(section: str, key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"expected {expected}") as caught:
        config_from_dict({section: {key: value}})
    assert f"{section}.{key}" in caught.value.what


@pytest.mark.parametrize("text", ["True", "yes"])
def test_a_switch_that_is_neither_true_nor_false_is_refused_with_a_cure(text: str) -> None:
    with pytest.raises(ConfigError, match="expected bool") as caught:
        load_config("default", [f"training.flip={text}"])
    assert caught.value.fix == "write true or false"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_no_setting(value: float) -> None:
    for section, key in (("training", "l1"), ("intensity", "low")):
        with pytest.raises(ConfigError, match="not finite"):
            config_from_dict({section: {key: value}})


def test_whole_number_serves_as_float() -> None:
    value = config_from_dict({"training": {"l1": 2}}).training.l1
    assert (value, type(value)) == (2.0, float)


# --- combinations ---


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"low": 0.0},
        {"high": 1.0},
        {"low": 1.0, "high": 1.0},
        {"low": 2.0, "high": 1.0},
    ],
)
def test_window_needs_both_limits_in_order(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="low < high"):
        config_from_dict({"intensity": {"policy": "window", **limits}})


def test_window_with_limits_is_accepted() -> None:
    intensity = config_from_dict({"intensity": {"policy": "window", "low": -1000, "high": 400}}).intensity
    assert (intensity.low, intensity.high) == (-1000.0, 400.0)


@pytest.mark.parametrize("section", ["training", "scoring"])
def test_at_least_one_error_weight(section: str) -> None:
    names = [key for key in ("l1", "l2", "ssim", "gms", "chroma") if hasattr(getattr(DEFAULT, section), key)]
    zeros = dict.fromkeys(names, 0.0)
    with pytest.raises(ConfigError, match=f"weights of {section}"):
        config_from_dict({section: zeros})
    for name in names:
        config_from_dict({section: zeros | {name: 0.1}})


def test_split_leaves_something_for_training() -> None:
    with pytest.raises(ConfigError, match="validation_share"):
        config_from_dict({"split": {"validation_share": 0.5, "calibration_share": 0.5}})


def test_smallest_side_is_not_above_the_largest() -> None:
    with pytest.raises(ConfigError, match="min_side_px = 128, max_side_px = 100"):
        config_from_dict({"geometry": {"min_side_px": 128, "max_side_px": 100}})


def test_a_batch_of_one_is_refused_with_a_cure() -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size = 1") as caught:
        load_config("default", ["training.batch_size=1"])
    assert caught.value.fix.endswith("lower crop_px")


# --- there and back ---


@pytest.mark.parametrize("name", PRESETS)
def test_dictionary_there_and_back(name: str) -> None:
    config = load_config(name)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_with_values_changes_only_what_it_names_and_checks_it() -> None:
    changed = with_values(DEFAULT, model={"n_channels": 3}, scoring={"pooling": "quantile"})
    expected = config_to_dict(DEFAULT)
    expected["model"]["n_channels"], expected["scoring"]["pooling"] = 3, "quantile"
    assert config_to_dict(changed) == expected
    with pytest.raises(ConfigError, match=r"model\.n_channels"):
        with_values(DEFAULT, model={"n_channels": 0})


# --- overrides ---


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.steps=500", "training", "steps", 500),
        ("training.steps=1_000", "training", "steps", 1000),
        (" training.steps = 7 ", "training", "steps", 7),
        ("training.learning_rate=1e-3", "training", "learning_rate", 1e-3),
        ("training.l1=2", "training", "l1", 2.0),
        ("training.flip=true", "training", "flip", True),
        ("training.repair=false", "training", "repair", False),
        ("scoring.pooling=quantile", "scoring", "pooling", "quantile"),
        ('scoring.pooling="top_share"', "scoring", "pooling", "top_share"),
        ("intensity.low=-1000", "intensity", "low", -1000.0),
    ],
)
def test_override(override: str, section: str, key: str, value: object) -> None:
    found = getattr(getattr(load_config("default", [override]), section), key)
    assert (found, type(found)) == (value, type(value))


def test_last_override_wins_and_beats_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 1\n[training]\nsteps = 11\nbatch_size = 3\n", encoding="utf-8")
    config = load_config(path, ["training.steps=12", "training.steps=13", "seed=5"])
    assert (config.training.steps, config.training.batch_size, config.seed) == (13, 3, 5)


@pytest.mark.parametrize(
    "override",
    [
        "training.steps",
        "=5",
        "training=5",
        "training.=5",
        "a.b.c=1",
        "training.steps=",
        "seed.x=3",
        "preset.x=1",
        "steps=3",
    ],
)
def test_what_is_no_setting_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config("default", [override])


def test_sections_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.training.steps = 3  # type: ignore[misc]
