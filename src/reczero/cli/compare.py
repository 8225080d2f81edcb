"""`reczero compare`: how the models of finished runs did."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folder of a finished run; several (seeds of one recipe) are pooled.", show_default=False),
    ],
) -> None:
    """Print the comparison of finished runs, computed anew from their predictions.

    Example: reczero compare runs/demo
    """
    from reczero.evaluation.compare import compare_run, compare_stages, print_comparison

    print_comparison(compare_run(*runs), compare_stages(*runs), len(runs))
