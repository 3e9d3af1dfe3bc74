"""The parts of the experiment bench, see ``benchmarks/quality.py`` and docs/benchmarks/README.md."""
