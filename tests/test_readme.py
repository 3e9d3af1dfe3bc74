"""What the documents say is true: commands run, code runs, links lead somewhere, tables name what exists.

README.md, the reference of Python, and each how-to page with commands, is executed from top to bottom in a folder that
holds a small embedded data set called ``parts`` and other normal images in ``new_normals``. To keep that fast, every
``anomaly-ae fit`` gets ``--preset smoke`` appended; nothing else is changed. Only the demo is left out there: it has
its own test below.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from anomaly_ae.cli import app
from anomaly_ae.synthetic import make_dataset

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
COMMAND_LINE = ROOT / "docs" / "reference" / "command-line.md"
RESULTS = ROOT / "docs" / "reference" / "results.md"
PYTHON = ROOT / "docs" / "reference" / "python.md"
PIPELINE = ROOT / "docs" / "how-to" / "pipeline.md"
OWN_IMAGES = ROOT / "docs" / "how-to" / "own-images.md"
COMPARING = ROOT / "docs" / "how-to" / "compare-and-gate.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (language, content) of every fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", text_of(path), flags=re.MULTILINE | re.DOTALL)


def commands(content: str) -> list[list[str]]:
    """Return the arguments of every ``anomaly-ae`` line; a backslash at the end continues it."""
    lines = content.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("anomaly-ae ")]


def run(arguments: list[str]) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"anomaly-ae {shlex.join(arguments)}\n{result.output}\n{result.exception!r}"
    return result.output


def run_document(path: Path) -> tuple[int, int]:
    """Run every command and every Python block in order; return how many there were."""
    n_commands = n_python = 0
    for language, content in blocks(path):
        if language == "python":
            exec(compile(content, f"{path.name} (python block {n_python + 1})", "exec"), {"__name__": "readme"})
            n_python += 1
        elif language == "sh":
            for arguments in commands(content):
                n_commands += 1
                if arguments[0] != "demo":
                    run([*arguments, *(["--preset", "smoke"] if arguments[0] == "fit" else [])])
    return n_commands, n_python


@pytest.fixture
def folder_with_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_dataset(tmp_path / "parts", n_train=60, n_test_normal=6, n_per_defect=2, size_px=64)
    new = make_dataset(tmp_path / "new", n_train=15, n_test_normal=0, n_per_defect=0, size_px=64, seed=1)
    (new / "train" / "good").rename(tmp_path / "new_normals")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command_tree() -> dict[str, Any]:
    """Return the commands of the program by name, as the parser knows them."""
    return {name: c for name, c in typer.main.get_command(app).commands.items() if not c.hidden}


def options_of(command: Any) -> set[str]:
    """Return the long options that ``--help`` shows."""
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    names = {name for p in shown for name in (*p.opts, *p.secondary_opts) if name.startswith("--")}
    return names - {"--help", "--install-completion", "--show-completion"}


def sections(path: Path) -> dict[str, str]:
    """Return the text under each second-level heading ``## `anomaly-ae NAME` ``, by NAME."""
    parts = re.split(r"^## `anomaly-ae (\w+)`$", text_of(path), flags=re.MULTILINE)
    return {
        name: re.split(r"^## ", body, flags=re.MULTILINE)[0]
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def first_column(text: str) -> list[str]:
    """Return the names in backticks that stand in the first column of a table."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, flags=re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.slow
def test_readme_runs(folder_with_parts: Path) -> None:
    n_commands, n_python = run_document(README)
    assert n_commands >= 4
    assert n_python >= 1


@pytest.mark.slow
@pytest.mark.parametrize("path", [OWN_IMAGES, PIPELINE, COMPARING, PYTHON], ids=lambda p: p.name)
def test_how_to_runs(path: Path, folder_with_parts: Path) -> None:
    assert sum(run_document(path)) >= 1


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    output = run(["demo", "--out", str(tmp_path / "demo"), "--preset", "smoke"])
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "demo" / "metrics.json").exists()
    assert "report.html" in output.replace("\n", "")


def test_every_make_target_stands_beside_its_plain_lines() -> None:
    makefile, readme = text_of(ROOT / "Makefile"), text_of(README)
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert phony
    for target in phony[1].split():
        assert f"`make {target}`" in readme
    for recipe in re.findall(r"^\t\$\(BIN\)/python (-m .*)$", makefile, flags=re.MULTILINE):
        assert rf".venv\Scripts\python {recipe}" in readme, "the line for Windows differs from the Makefile"


def test_readme_lists_the_modules_in_their_order() -> None:
    from test_architecture import FILES, ORDER, module_name

    tree = next(content for language, content in blocks(README) if content.startswith("anomaly_ae/"))
    listed = re.findall(r"^  (\w+)(?:\.py|/) ", tree, flags=re.MULTILINE)
    existing = {module_name(path) for path in FILES} - {"__init__", "__main__"}
    assert listed == [name for name in ORDER if name in existing]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(path)):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_reference_of_the_command_line_is_complete() -> None:
    documented, existing = sections(COMMAND_LINE), command_tree()
    assert list(documented) == list(existing), "commands, in the order of --help"
    for name, command in existing.items():
        in_text = {option.split()[0] for option in first_column(documented[name]) if option.startswith("--")}
        assert in_text == options_of(command), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_documents_name_only_commands_and_options_that_exist(path: Path) -> None:
    existing = command_tree()
    inline = re.findall(r"`(anomaly-ae [^`]+)`", text_of(path))
    in_blocks = [f"anomaly-ae {shlex.join(a)}" for language, c in blocks(path) if language == "sh" for a in commands(c)]
    for line in (*inline, *in_blocks):
        words = line.split()[1:]
        if not re.fullmatch(r"[a-z]+", words[0]):
            continue
        assert words[0] in existing, line
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= options_of(existing[words[0]]) | {"--help"}, line


@pytest.mark.slow
def test_reference_of_results_names_every_column_and_file(folder_with_parts: Path) -> None:
    (folder_with_parts / "parts" / "test" / "good" / "broken.png").write_bytes(b"no image")
    run(["fit", "parts", "--preset", "smoke", "--out", "m.safetensors"])
    result = CliRunner().invoke(app, ["evaluate", "m.safetensors", "parts", "--out", "run"])
    assert result.exit_code == 3, result.output  # done, but one input was unreadable
    documented = {
        heading: set(first_column(body))
        for heading, body in re.findall(r"^## `([\w.]+)`\n(.*?)(?=^## |\Z)", text_of(RESULTS), re.M | re.S)
    }
    for name in ("scores.csv", "units.csv", "failures.csv"):
        header = text_of(folder_with_parts / "run" / name).splitlines()[0].split(",")
        assert documented[name] == set(header), name
    files = {path.name for path in (folder_with_parts / "run").iterdir()}
    assert files <= set(first_column(text_of(RESULTS))), "a file or folder of the run is not described"
