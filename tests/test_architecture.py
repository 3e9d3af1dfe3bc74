"""The rules that keep the package readable, checked on the syntax tree of every module."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anomaly_ae

PACKAGE = Path(__file__).resolve().parent.parent / "anomaly_ae"

# A module imports only from modules that stand before it here.
ORDER = (
    "words", "errors", "version", "files", "sampling", "records", "config", "metrics", "dicom", "nifti", "readers",
    "shortcuts", "manifest", "synthetic", "placement", "prepare", "illumination", "alignment", "preparation",
    "baselines",
    "backbone", "model", "corruption", "measures", "regions", "scoring", "threshold", "calibration", "martingale",
    "modelfile", "ensemble", "listener", "device", "loading", "sources", "detector", "replay", "training", "residuals",
    "learning", "survey", "usable", "fitting", "progress", "results", "judging", "journal", "recalibration", "report",
    "page", "planting", "keeping", "evaluation", "drift", "capability", "audit", "curve", "demo", "cli", "__init__",
    "__main__",
)  # fmt: skip

# Seconds to import each; so only these modules may, and never while `anomaly-ae --help` is shown.
HEAVY = {
    "torch": {
        *("backbone", "measures"),
        *("model", "corruption", "scoring", "modelfile", "loading", "detector", "training", "residuals", "fitting"),
        *("device", "demo", "ensemble", "learning", "replay"),
    },
    "monai": set[str](),  # an oracle of the tests
    "pydicom": {"dicom"},
    "highdicom": {"dicom"},
    "nibabel": {"nifti"},
    "sklearn": set[str](),  # the same
    "pandas": set[str](),  # the same
    "matplotlib": set[str](),
}

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_NESTING = 4

FILES = sorted(PACKAGE.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path: Path) -> str:
    """Return the name in `ORDER`; the files of ``dicom/`` belong to "dicom"."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield every imported module in full, "anomaly_ae.metrics" for ``from anomaly_ae import metrics``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write anomaly_ae.NAME"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST) -> set[str]:
    """Return the modules of this package that are imported, by their names in `ORDER`."""
    parts = (name.split(".") for name in imports(tree))
    return {p[1] for p in parts if p[0] == "anomaly_ae" and len(p) > 1 and p[1] in ORDER}


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def runtime_tree(tree: ast.Module) -> ast.Module:
    """Return the module without its ``if TYPE_CHECKING:`` blocks, which are never executed."""
    return ast.Module([node for node in tree.body if not is_type_checking(node)], [])


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def nesting(node: ast.AST) -> int:
    """Return how deep blocks lie inside each other; ``elif`` adds no level, an inner function counts alone."""
    blocks = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*Function.__args__, ast.Lambda)):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child) + (isinstance(child, blocks) and not is_elif))
    return deepest


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    return ((ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def names(tree: ast.AST) -> Iterator[str]:
    """Yield every name that the module itself chooses: functions, classes, parameters, variables."""
    for node in ast.walk(tree):
        if isinstance(node, (*Function.__args__, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def loaded_by(code: str, tmp_path: Path) -> set[str]:
    """Run the code in a fresh interpreter and return which of the heavy packages it loaded."""
    report = f"\nimport sys; print('LOADED', *[m for m in {sorted(HEAVY)} if m in sys.modules])"
    command = [sys.executable, "-c", code + report]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


per_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


@per_file
def test_module_stands_in_the_order_and_has_a_docstring(path: Path) -> None:
    assert module_name(path) in ORDER, "write the new module into ORDER and into the tree of README.md"
    assert ast.get_docstring(parse(path)), "say in one sentence what the module is for"


@per_file
def test_module_imports_only_from_modules_above_its_own(path: Path) -> None:
    own = module_name(path)
    below = {name for name in own_imports(parse(path)) if ORDER.index(name) > ORDER.index(own)}
    assert not below


def test_order_check_sees_every_form_of_import() -> None:
    tree = ast.parse(
        "import anomaly_ae.cli\nfrom anomaly_ae.report import x\ndef f():\n    from anomaly_ae import metrics"
    )
    assert own_imports(tree) == {"cli", "report", "metrics"}


@per_file
def test_heavy_packages_only_where_named(path: Path) -> None:
    imported = {name.split(".")[0] for name in imports(runtime_tree(parse(path)))}
    assert not {name for name in imported & set(HEAVY) if module_name(path) not in HEAVY[name]}


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded_by("import anomaly_ae", tmp_path) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["evaluate", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = {['anomaly-ae', *arguments]!r}\n"
        "from anomaly_ae.cli import main\n"
        "try:\n    code = main()\nexcept SystemExit as stop:\n    code = stop.code\n"
        "assert not code, code"
    )
    assert loaded_by(code, tmp_path) == set()


def test_public_names_resolve() -> None:
    public = anomaly_ae.__all__
    assert len(public) == len(set(public))
    assert 15 <= len(public) <= 25
    assert {"Detector", "read_image", "AnomalyAEError"} <= set(public)
    missing = [name for name in public if not hasattr(anomaly_ae, name)]
    assert not missing
    assert set(public) <= set(dir(anomaly_ae)), "lazily loaded names show in dir()"


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = anomaly_ae.no_such_name


@per_file
def test_nothing_that_executes_what_a_file_says(path: Path) -> None:
    tree = parse(path)
    assert not {"pickle", "shelve", "marshal", "dill", "joblib"} & {name.split(".")[0] for name in imports(tree)}
    for name, call in calls(tree):
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert name not in {"torch.load", "torch.save", "os.system", "os.popen", "eval", "exec"}, call.lineno
        assert keywords.get("shell", "False") == "False", call.lineno
        if name in {"np.load", "numpy.load", "np.lib.format.read_array"}:
            assert keywords.get("allow_pickle") == "False", f"line {call.lineno}: say allow_pickle=False"


@per_file
def test_only_the_command_line_prints(path: Path) -> None:
    if module_name(path) != "cli":
        assert "print" not in {name for name, _ in calls(parse(path))}


@per_file
def test_no_network(path: Path) -> None:
    forbidden = {"socket", "urllib", "http", "requests", "httpx", "ftplib", "smtplib"}
    found = {name for name in imports(parse(path)) if name.split(".")[0] in forbidden}
    assert found <= {"urllib.parse", "urllib.parse.quote"}


@per_file
def test_sizes(path: Path) -> None:
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_MODULE_LINES, "make it a package of the same name"
    for function in functions(parse(path)):
        length = int(function.end_lineno or 0) - function.lineno + 1
        doc = ast.get_docstring(function, clean=False) or ""
        assert length - len(doc.splitlines()) <= MAX_FUNCTION_LINES, f"{function.name}: {length} lines"
        assert nesting(function) <= MAX_NESTING, f"{function.name} is nested too deeply"


def test_most_functions_are_short() -> None:
    lengths = [
        int(f.end_lineno or 0) - f.lineno + 1 - len((ast.get_docstring(f, clean=False) or "").splitlines())
        for path in FILES
        for f in functions(parse(path))
    ]
    assert sum(n > 25 for n in lengths) / len(lengths) <= 0.1


def test_nesting_counts_blocks() -> None:
    tree = ast.parse("for a in b:\n    if a:\n        pass\n    elif b:\n        with c:\n            pass")
    assert nesting(tree) == 3


@per_file
def test_words_of_the_glossary(path: Path) -> None:
    avoided = {
        "inp",
        "recon",
        "inlier",
        "inliers",
        "outlier",
        "outliers",
        "cutoff",
        "contamination",
        "overkill",
    }
    if module_name(path) == "scoring":  # there it is a map of numbers; the heatmap is its picture
        avoided.add("heatmap")
    words = {word for name in names(parse(path)) for word in re.split(r"_+", name.lower())}
    assert not words & avoided


@per_file
def test_every_module_can_be_imported_alone(path: Path) -> None:
    if path.name != "__main__.py":
        dotted = ".".join(("anomaly_ae", *path.relative_to(PACKAGE).with_suffix("").parts))
        assert importlib.import_module(dotted.removesuffix(".__init__"))
