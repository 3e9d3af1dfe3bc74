"""The command line: talks to people, holds no logic of its own. A file for every kind of command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from anomaly_ae.cli import beginning, learning, studying, using, judging  # isort: skip  # the order of --help
from anomaly_ae.cli.shared import EXIT_ABORTED, app
from anomaly_ae.errors import AnomalyAEError
from anomaly_ae.version import __version__

__all__ = ["app", "beginning", "judging", "learning", "main", "studying", "using"]


def main() -> None:
    """Run the program; expected errors become one line and their exit code."""
    from anomaly_ae.progress import sigterm_as_ctrl_c

    try:
        with sigterm_as_ctrl_c():
            app(standalone_mode=True)
    except AnomalyAEError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as end:  # Typer ends so; a Ctrl-C becomes 130 without a word
        if end.code == EXIT_ABORTED:
            typer.echo("aborted", err=True)
        raise


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context, show: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    """Handle options of the program itself."""
    if show:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
