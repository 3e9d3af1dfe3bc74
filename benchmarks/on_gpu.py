"""All that only a GPU can answer, in one command: the marked tests, the times, and the figures of long fits.

    python benchmarks/on_gpu.py ROOT --out OUT [--only STEP ...] [--jobs 3] [--device cuda]

ROOT as in quality.py. Each step is a command of its own, which is printed first; one that fails does not stop the
others. A second run in the same OUT goes on where the bench was stopped. The results are OUT/speed.md, and quality.md
in OUT/dev and OUT/final. With --dry-run the commands are printed and nothing else.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEEDS = ("0", "1", "2")
VARIANTS = ("default", "linear-errors", "textbook", "fast", "draem", "coarse-noise", "texture", "radiograph")
LONG = ("thorough",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; return 1 if one failed."""
    asked = parse(arguments)
    steps = commands(asked)
    failed = []
    for name in asked.only or steps:
        print(f"--- {name}: {shlex.join(steps[name])}", flush=True)
        started = time.monotonic()
        if not asked.dry_run and subprocess.run(steps[name], cwd=HERE.parent, check=False).returncode:
            failed.append(name)
        print(f"--- {name}: {time.monotonic() - started:.0f} s{', failed' * (name in failed)}", flush=True)
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with one folder per data set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=("tests", "speed", "dev", "final", "dev-long", "final-long"))
    parser.add_argument("--jobs", default="3", help="models that train side by side")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args(arguments)


def commands(asked: argparse.Namespace) -> dict[str, list[str]]:
    """Return the command of each step."""
    out, python = asked.out.resolve(), sys.executable
    bench = [python, "benchmarks/quality.py", str(asked.root.resolve()), "--device", asked.device, "--jobs", asked.jobs]
    dev = [*bench, "--out", str(out / "dev")]
    final = [*bench, "--out", str(out / "final"), "--manifest", "final.csv", "--fits-from", str(out / "dev")]
    speed = [python, "benchmarks/speed.py", "--out", str(out / "speed.md"), "--device", asked.device]
    return {
        "tests": [python, "-m", "pytest", "-m", "gpu", "tests"],
        "speed": [*speed, "--only", "fit", "fast", "score", "memory"],
        "dev": [*dev, *_what(VARIANTS)],
        "final": [*final, "--embedded", *_what(VARIANTS)],
        "dev-long": [*dev, *_what(LONG)],
        "final-long": [*final, *_what(LONG)],
    }


def _what(variants: Sequence[str]) -> list[str]:
    return ["--variant", *variants, "--seed", *SEEDS]


if __name__ == "__main__":
    sys.exit(main())
