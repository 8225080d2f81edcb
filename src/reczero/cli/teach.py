"""`reczero teach` and `reczero traces`: what a teacher writes for the cold start, and a look at it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reczero.errors import UserError

if TYPE_CHECKING:
    import polars as pl


def teach(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a shipped recipe (`recone`).", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, as many as you like.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the traces.", show_default="traces/RECIPE")] = None,
) -> None:
    """Have a recipe's teacher write traces, filter them, and show what came of it.

    The same command again goes on where it was stopped, and asks for nothing twice. A recipe's `teacher.traces` takes
    the folder. An endpoint's key is read from OPENAI_API_KEY.

    Example: reczero teach recone teacher.examples=200 --out traces/small
    """
    from reczero.recipes import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    folder = out or Path("traces") / Path(recipe).stem

    from reczero.cli.progress import Progress
    from reczero.recipes.rows import prepared
    from reczero.teachers.traces import teach_rows, write_traces
    from reczero.training.processes import Processes
    from reczero.training.session import load

    with Progress() as progress:
        data = prepared(loaded)
        device = Processes.join().device
        rows = teach_rows(loaded, data)
        progress.say(f"{loaded.teacher.kind} teacher, {rows.height:,} examples of {data.name}")
        try:
            table = write_traces(
                loaded, loaded.teacher, data, rows, folder,
                lambda name: load(loaded, data.scale, device, name), progress.report,
            )  # fmt: skip
        except KeyboardInterrupt:
            progress.say("interrupted; the same command goes on from here")
            raise
    _summary(table)
    typer.echo(f"traces: {folder / 'traces.parquet'}; a look at them: reczero traces {folder}")


def traces(
    folder: Annotated[Path, typer.Argument(help="Folder that `reczero teach` wrote.", show_default=False)],
    example: Annotated[
        str | None, typer.Option("--example", help="Show this example: both attempts and what became of them.")
    ] = None,
    verdict: Annotated[
        str | None, typer.Option("--verdict", help="Only traces whose verdict begins so, such as 'wrong'.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, help="How many to show.")] = 3,
) -> None:
    """Look at traces: what was kept and why not, by rating, and some of them in full.

    Example: reczero traces traces/recone --verdict wrong -n 5
    """
    from reczero.teachers.traces import read_traces

    table = read_traces(folder)
    if example is not None:
        import polars as pl

        found = table.filter(pl.col("example_id") == example)
        if found.is_empty():
            raise UserError(f"{folder}: no trace of example {example!r}.")
        _show(found.row(0, named=True), both=True)
        return
    _summary(table)
    if verdict is not None:
        import polars as pl

        table = table.filter(pl.col("verdict").str.starts_with(verdict))
        if table.is_empty():
            raise UserError(f"{folder}: no verdict begins with {verdict!r}.")
    for row in table.head(rows).iter_rows(named=True):
        _show(row, both=not row["kept"])


def _summary(table: "pl.DataFrame") -> None:
    """What became of the examples; which ratings the kept ones have."""
    import polars as pl
    from rich.console import Console
    from rich.table import Table

    console, total = Console(), max(1, table.height)
    reasons = Table("verdict", "traces", "share", title=f"{table.height:,} examples", title_justify="left")
    counts = table["verdict"].str.split(":").list.first().value_counts(sort=True)
    for name, count in counts.iter_rows():
        reasons.add_row(name, f"{count:,}", f"{count / total:.1%}")
    console.print(reasons)
    ratings = Table("rating", "asked", "kept", title="By true rating", title_justify="left")
    for rating, asked, kept in (
        table.group_by("rating").agg(asked=pl.len(), kept=pl.col("kept").sum()).sort("rating").iter_rows()
    ):
        ratings.add_row(f"{rating:g}", f"{asked:,}", f"{kept:,}")
    console.print(ratings)
    tokens = table.select(pl.col("prompt_tokens") + pl.col("completion_tokens")).sum().item()
    if tokens:
        cost = f"{table['cost'].sum():.2f} by the recipe's prices"
        console.print(f"{tokens:,} tokens in these answers, {cost}", markup=False, highlight=False)


def _show(row: dict, both: bool) -> None:
    from reczero.errors import printable

    lines = [f"\nexample {row['example_id']}, true rating {row['rating']:g}: {row['verdict']}"]
    if row["kept"]:
        lines += [row["text"]]
    if both:
        for name, title in (("first", "first answer"), ("told", "answer when told the rating")):
            if row[f"{name}_verdict"] is not None:
                lines += [f"--- {title}: {row[f'{name}_verdict']}", row[f"{name}_text"] or "(none)"]
    typer.echo(printable("\n".join(lines)))
