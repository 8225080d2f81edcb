"""`reczero report`: the page that tells what was run and what came of it."""

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)]) -> None:
    """Write the report of a run again, one HTML file that needs no network, and print its path.

    Example: reczero report runs/demo
    """
    from reczero.evaluation.report import write_report

    typer.echo(write_report(run))
