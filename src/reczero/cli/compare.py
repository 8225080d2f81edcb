"""`reczero compare`: how the models of a finished run did."""

from pathlib import Path
from typing import Annotated

import typer


def compare(run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)]) -> None:
    """Print the comparison of a finished run, computed anew from its predictions.

    Example: reczero compare runs/demo
    """
    from reczero.evaluation.compare import compare_run, print_comparison

    print_comparison(compare_run(run))
