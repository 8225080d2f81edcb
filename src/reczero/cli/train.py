"""`reczero train`: a recipe in, a trained policy, a comparison and a report out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reczero.errors import UserError

if TYPE_CHECKING:
    from reczero.recipes import Recipe


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a shipped recipe (`quickstart`).", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, as many as you like.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/RECIPE")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in that folder, or use it as it is if it is finished.")
    ] = False,
    reuse: Annotated[
        Path | None,
        typer.Option(
            help="Another run: stages that it did with the same inputs are taken from it.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
) -> None:
    """Train a policy by a recipe, compare it with the untrained one and with baselines, and write a report.

    Example: reczero train quickstart training.seed=1 --out runs/seed1
    """
    from reczero.recipes import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    folder = out or Path("runs") / Path(recipe).stem
    if reuse is not None and not (reuse / "run.json").is_file():
        raise UserError(f"--reuse {reuse}: is not a run.")
    if dry_run:
        _plan(loaded, folder)
        return

    from reczero.cli.progress import Progress
    from reczero.evaluation.compare import compare_run, compare_stages, print_comparison
    from reczero.training.pipeline import train as run_recipe
    from reczero.training.processes import started

    with Progress() as progress:
        try:
            run_recipe(loaded, folder, resume=resume, say=progress.say, report=progress.report, reuse=reuse)
        except KeyboardInterrupt:
            progress.say("interrupted; the same command with --resume goes on from here")
            raise
    if started()[0] > 0:  # of several processes one speaks
        return
    print_comparison(compare_run(folder), compare_stages(folder))
    typer.echo(f"report: {folder / 'report.html'}")


def _plan(recipe: "Recipe", folder: Path) -> None:
    """What the recipe comes to. Reads no data and loads no model, so it runs anywhere."""
    from reczero.recipes import to_yaml

    typer.echo(to_yaml(recipe))
    t, r, e = recipe.training, recipe.rollout, recipe.evaluation
    rows = recipe.data.train_examples
    steps: Any = t.steps or (int(rows * t.epochs / t.groups_per_step) if rows else "one epoch of")
    answers = t.groups_per_step * r.group_size
    kept = "last step" if t.keep == "last" and recipe.method != "sft" else "best checkpoint"
    way = f"{'guided' if r.guided else 'free'} answers by {r.engine}, reward {t.reward}"
    lines = [
        f"method      {recipe.method}: {_stages(recipe)}",
        f"data        {_what_is_read(recipe)}",
        f"policy      {recipe.model.name}, {recipe.model.dtype}, {_what_learns(recipe)}",
    ]
    if recipe.method != "reczero":
        s = recipe.sft
        length = f"{s.steps} steps" if s.steps else f"{s.epochs:g} epoch" + "s" * (s.epochs != 1)
        lines += [
            f"teacher     {recipe.teacher.traces or _teacher(recipe)}",
            f"SFT         {length}, {s.traces_per_step} traces a step",
        ]
    if recipe.method != "sft":
        lines += [
            f"GRPO        {steps} steps of {t.groups_per_step} prompts x {r.group_size} answers = {answers} a step",
            f"            {way}",
        ]
    lines += [
        f"validation  {e.validation_examples} rows now and then; the {kept} is kept",
        f"test        {e.test_examples or 'all'} rows, untrained and trained",
        f"output      {folder}/",
    ]
    typer.echo("\n".join(lines))


def _stages(recipe: "Recipe") -> str:
    stages = {"reczero": "GRPO", "sft": "SFT on a teacher's traces", "recone": "SFT on a teacher's traces, then GRPO"}
    rounds = f"recone, then up to {recipe.iterate.rounds} rounds in which its own policy is the teacher"
    return stages.get(recipe.method, rounds)


def _teacher(recipe: "Recipe") -> str:
    teacher = recipe.teacher
    who = teacher.endpoint.model if teacher.endpoint else teacher.policy or recipe.model.name
    by = {"profile": "rules, no model", "endpoint": f"endpoint, {who}", "policy": f"policy {who}"}[teacher.kind]
    return f"{by}; {teacher.samples} x {teacher.examples:,} training rows"


def _what_is_read(recipe: "Recipe") -> str:
    """The data, as far as it can be told without fetching or reading much. UserError for a name that is none."""
    from reczero.data import PUBLISHED, SOURCES, Dataset
    from reczero.errors import unknown

    data, rows = recipe.data, recipe.data.train_examples
    wanted = f"up to {rows:,} training rows" if rows else "all training rows"
    if data.source or data.reviews:
        return f"{data.reviews}, read as {data.source or data.dataset}; {wanted}"
    if (Path(data.dataset) / "dataset.json").is_file():
        counts = Dataset.open(Path(data.dataset)).info["counts"]
        warm = counts["train"] - counts["train_cold_start"]
        return f"{data.dataset}, {min(rows or warm, warm):,} of {warm:,} training rows"
    if data.dataset not in {**PUBLISHED, **SOURCES}:
        raise unknown("prepared folder or data set", data.dataset, PUBLISHED)
    return f"{data.dataset}; {wanted}"


def _what_learns(recipe: "Recipe") -> str:
    where = f"upper {recipe.model.train_layers} blocks" if recipe.model.train_layers else ""
    if recipe.model.lora:
        return f"LoRA of rank {recipe.model.lora.rank}" + (f" on the {where}" if where else "")
    return where or "all weights"
