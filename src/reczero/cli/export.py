"""`reczero export`: a run's model as a folder that other software loads."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write: new, empty, or an earlier export.", show_default=False)],
) -> None:
    """Write the best model of a run, LoRA merged, as a folder that transformers and vLLM load.

    Example: reczero export runs/demo --out models/demo
    """
    from reczero.models import export_model

    typer.echo(export_model(run / "model", out))
