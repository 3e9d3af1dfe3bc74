"""Nothing at run time needs or tries a network connection."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

from anomaly_ae.cli import app
from anomaly_ae.synthetic import make_dataset


class _NetworkUsed(BaseException):
    """No ``except Exception`` and no ``except OSError`` may hide it."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_keywords: Any) -> NoReturn:
        raise _NetworkUsed

    class NoSocket(socket.socket):  # a class, because packages derive their own from it when they are imported
        def __init__(self, *_arguments: Any, **_keywords: Any) -> None:
            raise _NetworkUsed

    monkeypatch.setattr(socket, "socket", NoSocket)
    for name in ("create_connection", "create_server", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)


def run(*arguments: str | Path) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"


def test_the_block_works() -> None:
    with pytest.raises(_NetworkUsed):
        socket.create_connection(("127.0.0.1", 9))
    with pytest.raises(_NetworkUsed):
        socket.socket()


@pytest.mark.slow
def test_fit_score_evaluate_without_sockets(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "parts", n_train=40, n_test_normal=6, n_per_defect=1, size_px=64)
    model = tmp_path / "parts.safetensors"
    run("fit", data, "--preset", "smoke", "--out", model)
    run("score", model, data / "test", "--out", tmp_path / "scored")
    run("evaluate", model, data, "--out", tmp_path / "evaluated")
    assert (tmp_path / "scored" / "scores.csv").exists()
    page = (tmp_path / "evaluated" / "report.html").read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}, "the report loads nothing and links nowhere"
    assert "@import" not in page
