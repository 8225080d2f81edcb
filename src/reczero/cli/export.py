"""`reczero export`: a run's model as a folder that other software loads."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write: new, empty, or an earlier export.", show_default=False)],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Only the LoRA adapter, which reczero and PEFT load with its base model.")
    ] = False,
) -> None:
    """Write the best model of a run, LoRA merged, as a folder that transformers and vLLM load.

    Its reczero.json says how the model was prompted, so that `reczero compare` asks it as in training.

    Example: reczero export runs/demo --out models/demo
    """
    from reczero.models import export_adapter, export_model
    from reczero.rollout.opening import find, write_about

    found = find(str(run)) if (run / "recipe.yaml").is_file() else None
    # Weights that learned are float32 in the run; the recipe's dtype is what they are used in.
    if adapter:
        folder = export_adapter(run / "model", out)
    else:
        folder = export_model(run / "model", out, found.dtype if found else "auto")
    if found:
        write_about(folder, found.rollout, found.scale, found.usual)
    typer.echo(folder)
