"""`reczero launch`: a recipe on many GPUs, by verl or by accelerate."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reczero.errors import UserError
from reczero.scaleout import Preset

if TYPE_CHECKING:
    from reczero.recipes import Recipe
    from reczero.scaleout.launch import Launch


app = typer.Typer(
    no_args_is_help=True,
    help="Take a recipe to a distributed engine.\n\nExample: reczero launch accelerate reczero-7b --gpus 8",
)


@app.command("verl")
def launch_verl(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a shipped recipe (`reczero-7b`).", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value of the recipe.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write; on several nodes, one that all see.", show_default="verl/RECIPE"),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a node.")] = 8,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs over which vLLM splits the model.", show_default="what GPUs of 80 GB need"),
    ] = None,
    verl: Annotated[
        list[str] | None,
        typer.Option(help="key=value in verl's own configuration of GRPO. Repeatable.", show_default=False),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest prompt, where the tokenizer can't be had here.", show_default="measured"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it all, and write nothing.")] = False,
    submit: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Hand it to a running Ray cluster, http://HEAD:8265.", show_default=False),
    ] = None,
) -> None:
    """Write a folder with all that the recipe needs on verl 0.9.1: data, configuration, reward, scripts, README.

    RecZero, RecOne and SFT; answers are free. Not exercised without a GPU.

    Example: reczero launch verl reczero-7b data.dataset=data/music --out verl/music --gpus 8

    Example: reczero launch verl quickstart --dry-run
    """
    from reczero.cli.progress import Progress
    from reczero.recipes import load_recipe
    from reczero.scaleout.launch import plan_launch, write_launch
    from reczero.scaleout.launch import submit as hand_over
    from reczero.scaleout.verl import Cluster

    if dry_run and submit is not None:
        raise UserError("--dry-run and --submit: one or the other")
    if submit == "":
        raise UserError("--submit: is empty; give the address of the cluster, such as http://HEAD:8265")
    loaded = load_recipe(recipe, overrides or [])
    folder = out or Path("verl") / Path(recipe).stem
    cluster = Cluster(gpus, nodes, tensor_parallel or _tensor_parallel(loaded, gpus))
    with Progress() as progress:
        launch = plan_launch(loaded, folder, cluster, verl or [], prompt_tokens, progress.say, progress.report)
        if not dry_run:
            write_launch(launch, folder)
    if dry_run:
        _show(launch)
    for line in launch.differences:
        typer.echo(f"differs: {line}", err=True)
    if dry_run:
        return
    typer.echo(f"written: {folder}; the steps are in {folder / 'README.md'} (not exercised without a GPU)")
    if submit:
        typer.echo(hand_over(folder, submit))


@app.command("accelerate")
def launch_accelerate(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a shipped recipe (`reczero-7b`).", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value of the recipe.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/RECIPE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of this node, one process each.")] = 8,
    preset: Annotated[
        Preset,
        typer.Option(help="ddp: all on each GPU; zero2: optimizer in shards; zero3, fsdp: weights too."),
    ] = "zero2",
    cpu: Annotated[
        bool, typer.Option("--cpu", help="A trial on CPUs: processes instead of GPUs, without shards.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the command, and start nothing.")] = False,
) -> None:
    """Start `reczero train` on several GPUs of this node by accelerate: DDP, DeepSpeed ZeRO-2 or -3, or FSDP.

    Only --cpu was exercised: there was no GPU.

    Example: reczero launch accelerate reczero-7b --gpus 8 --preset zero2 --out runs/7b

    Example: reczero launch accelerate quickstart --gpus 2 --cpu --out runs/two
    """
    import shlex
    import subprocess
    from importlib.util import find_spec

    from reczero.recipes import load_recipe
    from reczero.scaleout.accelerate import check, command

    check(load_recipe(recipe, overrides or []), "ddp" if cpu else preset, gpus)
    folder = out or Path("runs") / Path(recipe).stem
    train = [recipe, *(overrides or []), "--out", str(folder), *(["--resume"] if resume else [])]
    started = command(preset, gpus, train, cpu)
    if dry_run:
        typer.echo(shlex.join(started))
        return
    if preset.startswith("zero") and not cpu and find_spec("deepspeed") is None:
        raise UserError(f"--preset {preset}: DeepSpeed is not installed here: pip install deepspeed, or --preset fsdp")
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
    with subprocess.Popen(started, env=environment) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the processes got it too
            code = process.wait() and 130
    if code:
        raise UserError(
            f"the processes ended with code {code}; the same command with --resume goes on from the last step"
        )


def _tensor_parallel(recipe: "Recipe", gpus: int) -> int:
    """For vLLM's half of an 80 GB GPU; 1 for a model whose sizes can't be had here."""
    from reczero.scaleout.plan import tensor_parallel
    from reczero.scaleout.shapes import shape_of

    try:
        return tensor_parallel(shape_of(recipe.model.name), 2, 40e9, gpus)
    except UserError:
        return 1


def _show(launch: "Launch") -> None:
    """What would be written: every configuration in full, and how many rows each table has."""
    for name in ("sft_overrides.txt", "overrides.txt", "run.sh"):
        if name in launch.texts:
            typer.echo(f"--- {name}\n{launch.texts[name]}")
    for name, table in launch.tables.items():
        typer.echo(f"{name:20} {table.height:,} rows")
    typer.echo(f"{'longest prompt':20} {launch.sizes.prompt_tokens:,} tokens")
    others = sorted(launch.texts.keys() - {"sft_overrides.txt", "overrides.txt", "run.sh"})
    typer.echo(f"{'and':20} {', '.join(others)}")
