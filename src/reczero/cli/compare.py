"""`reczero compare`: how finished runs did, or anything against anything on a data set's held-out rows."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reczero.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from reczero.data import Dataset


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            help="A prepared data set (its folder, or a name such as ml-100k); or folders of finished runs: several "
            "(seeds of one recipe) are pooled.",
            show_default=False,
            metavar="DATA | RUN...",
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="DATA: a language model: a run, a model folder, a hub name, smollm2-135m (untrained), "
            "smollm2-135m-recone; or NAME=MODEL; or NAME=RUN,RUN,... for the runs of several seeds, pooled. "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="DATA: a baseline's name, `averages` or `all`. Repeatable.", show_default="all without --model"
        ),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            help="DATA: NAME=FILE, a CSV, JSON lines or Parquet with example_id and prediction (and distribution, as "
            "`reczero predict` writes it); or NAME=DIR, answers that verl left in a folder of `reczero launch`. "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="DATA: folder to write.", show_default="runs/compare-DATA, or …-validation")
    ] = None,
    split: Annotated[
        Literal["test", "validation"],
        typer.Option(help="DATA: which rows; validation ones are for choosing, so that the test rows stay unread."),
    ] = "test",
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="DATA: only so many of them, spread evenly: a quick look.", show_default="all"),
    ] = None,
    min_user_history: Annotated[
        int, typer.Option(min=0, help="DATA: earlier ratings of the user that a row of the main table has.")
    ] = 5,
    min_item_history: Annotated[int, typer.Option(min=0, help="DATA: the same of the item.")] = 5,
    tune: Annotated[
        bool, typer.Option("--tune", help="DATA: choose the baselines' settings on validation rows, and keep them.")
    ] = False,
    refit: Annotated[
        int, typer.Option(min=0, help="DATA: fit collaborative baselines anew so many times in the test period, too.")
    ] = 10,
    validation: Annotated[
        int, typer.Option(min=0, help="DATA: validation rows that choose how a language model's number is decoded.")
    ] = 500,
    samples: Annotated[
        int, typer.Option(min=0, help="DATA: also the mean and the median of so many sampled answers of a model.")
    ] = 0,
    probe: Annotated[
        int, typer.Option(min=0, help="DATA: ask each language model so many rows again with what it reads altered.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="DATA: answers of a language model at a time.")] = 64,
    rounds: Annotated[int, typer.Option(min=100, help="Draws of users for the intervals.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws, samples and probes.")] = 0,
    anonymise: Annotated[
        bool, typer.Option("--anonymise", help="DATA: numbers in place of user ids in all that is written.")
    ] = False,
) -> None:
    """Compare on held-out rows, with intervals and paired tests over users, and write the tables and a report.

    Example: reczero compare ml-100k --baseline all --out runs/baselines

    Example: reczero compare data/mine --model runs/mine --predictions ours=scores.csv --baseline all

    Example: reczero compare runs/seed0 runs/seed1
    """
    is_run = [(Path(name) / "run.json").is_file() or (Path(name) / "recipe.yaml").is_file() for name in what]
    if all(is_run):
        if model or baseline or predictions or out or rows or tune or samples or probe or anonymise or split != "test":
            raise UserError("these options are for a data set; runs are compared on the rows that they were tested on")
        if len({Path(name).resolve() for name in what}) < len(what):
            raise UserError("a run stands there twice; pool runs of several seeds")
        _runs([Path(name) for name in what], rounds, seed)
        return
    if len(what) > 1:
        other = next(name for name, run in zip(what, is_run, strict=True) if not run)
        raise UserError(f"{other}: not the folder of a finished run; give one data set, or runs only")

    import polars as pl

    from reczero.cli.progress import Progress
    from reczero.data import open_data
    from reczero.evaluation.asking import Plan
    from reczero.evaluation.baselines import NAMES, is_average
    from reczero.evaluation.compare import print_comparison
    from reczero.evaluation.findings import summary
    from reczero.evaluation.report import write_report
    from reczero.evaluation.study import study

    wanted = baseline or (["averages"] if model else ["all"])
    groups = {"all": NAMES, "averages": tuple(name for name in NAMES if is_average(name))}
    names = tuple(dict.fromkeys(name for given in wanted for name in groups.get(given, (given,))))
    data = open_data(what[0])
    suffix = "-validation" if split == "validation" else ""
    folder = out or Path("runs") / f"compare-{Path(what[0]).name}{suffix}"
    files = dict(map(_named_file, predictions or []))
    given = {name: _table(Path(file), data) for name, file in files.items()}
    # What a launch on verl was asked, and no more, can be compared with it.
    asked = [set(given[name]["example_id"]) for name, file in files.items() if Path(file).is_dir()]
    only = pl.Series(sorted(set.intersection(*asked)), dtype=pl.String) if asked else None
    chosen = dict(map(_named_model, model or []))
    if len(chosen) < len(model or []) or len(given) < len(predictions or []):
        raise UserError("two entries have one name; name them, such as --model first=runs/a --model second=runs/b")
    plan = Plan(
        split=split, models={}, baselines=names, given=given, only=only, rows=rows,
        min_user_history=min_user_history, min_item_history=min_item_history,
        validation=validation, refit=refit, tune=tune, rounds=rounds, seed=seed, anonymise=anonymise,
    )  # fmt: skip
    if chosen:
        plan = _with_models(plan, chosen, data, batch_size, samples, probe)
    command = "reczero " + " ".join(sys.argv[1:]) if sys.argv[1:2] == ["compare"] else None
    with Progress() as progress:
        try:
            if only is not None:
                progress.say(f"only the {len(only):,} test rows that the launch asked")
            found = study(data, folder, plan, progress.say, progress.report, command)
        except KeyboardInterrupt:
            progress.say("interrupted; the same command goes on from here")
            raise
    print_comparison(pl.read_csv(folder / "comparison.csv"), summary(found))
    typer.echo(f"report: {write_report(folder)}")


def _with_models(plan, chosen: dict[str, str], data: "Dataset", batch_size: int, samples: int, probe: int):
    from dataclasses import replace

    from reczero.machine import keep_freed_memory
    from reczero.rollout.language_model import LanguageModel

    keep_freed_memory()
    models = {
        name: [LanguageModel.open(one, data, batch_size) for one in where.split(",")] for name, where in chosen.items()
    }
    return replace(plan, models=models, samples=samples, probe=probe)


def _runs(runs: list[Path], rounds: int, seed: int) -> None:
    from reczero.evaluation.compare import compare_run, compare_stages, print_comparison

    table = compare_run(*runs, rounds=rounds, seed=seed)
    print_comparison(table, compare_stages(*runs), len(runs))


def _named_file(text: str) -> tuple[str, str]:
    name, sep, file = text.partition("=")
    if not sep or not name or not file:
        raise UserError(f"--predictions {text}: is written NAME=FILE")
    return name, file


def _named_model(text: str) -> tuple[str, str]:
    name, sep, model = text.partition("=")
    return (name, model) if sep and name and model else (Path(text).name, text)


def _table(path: Path, data: "Dataset") -> "pl.DataFrame":
    from reczero.evaluation.outside import read_predictions_file

    return read_predictions_file(path, data.fingerprint)
