"""`reczero data`: list, fetch, prepare and show data sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from reczero.data import Dataset

app = typer.Typer(no_args_is_help=True, help="Get ratings, make examples of them, look at them.")

Archive = Annotated[
    str | None,
    typer.Option(help="The publisher's archive: a path or URL. Default: fetched.", show_default=False, metavar="PATH"),
]


@app.command("list")
def list_sources() -> None:
    """Show the data sets that can be fetched: size, scale, licence, how to get them.

    Example: reczero data list
    """
    from reczero.data import SOURCES

    for source in SOURCES.values():
        typer.echo(f"{source.name}: {source.title}; {source.size}")
        typer.echo(f"  scale    {source.scale.min:g}-{source.scale.max:g} by {source.scale.step:g}")
        typer.echo(f"  licence  {source.licence}\n  get it   {source.how_to_get}")


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="As in `reczero data list`.")], archive: Archive = None) -> None:
    """Bring a data set to the cache ($RECZERO_HOME, else ~/.cache/reczero), checked.

    Example: reczero data fetch ml-100k
    """
    from reczero.data import find_source
    from reczero.files import cache_dir

    source = find_source(name)
    folder = source.fetch(cache_dir(), archive)
    typer.echo(f"{name}: in {folder}\nlicence: {source.licence}")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="As in `reczero data list`; fetched when it is not there.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write.", show_default="data/NAME")] = None,
    archive: Archive = None,
    # The defaults are those of PrepareSettings, which is not imported for --help; a test holds the two together.
    split: Annotated[str | None, typer.Option(help="How to split: time.", show_default="time")] = None,
    train: Annotated[
        float | None, typer.Option(help="Share of the rows, the oldest, to train on.", show_default="0.8")
    ] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share after those, to choose a checkpoint on.", show_default="0.1")
    ] = None,
    test: Annotated[
        float | None, typer.Option(help="Share of the rows, the newest, to report on.", show_default="0.1")
    ] = None,
    k_core: Annotated[
        int | None, typer.Option(help="Targets only of users and items with so many ratings.", show_default="0")
    ] = None,
    history: Annotated[
        int | None, typer.Option(help="Newest earlier ratings that a context shows, each side.", show_default="10")
    ] = None,
    min_user_history: Annotated[
        int | None, typer.Option(help="Fewer by the user: a cold start.", show_default="1")
    ] = None,
    min_item_history: Annotated[
        int | None, typer.Option(help="Fewer of the item: a cold start.", show_default="1")
    ] = None,
    min_context: Annotated[
        int | None, typer.Option(help="Fewer shown rows, both sides together: a cold start.", show_default="5")
    ] = None,
) -> None:
    """Split a data set by time and make an example of every rating, with all that was known the moment before.

    Example: reczero data prepare ml-100k --out data/ml-100k
    """
    from pydantic import ValidationError

    from reczero.data import PrepareSettings, prepare_source
    from reczero.errors import UserError

    chosen: dict[str, Any] = dict(
        split=split, train=train, validation=validation, test=test, k_core=k_core, history=history,
        min_user_history=min_user_history, min_item_history=min_item_history, min_context=min_context,
    )  # fmt: skip
    try:
        settings = PrepareSettings(**{key: value for key, value in chosen.items() if value is not None})
    except ValidationError as error:
        raise UserError("; ".join(_mistake(e) for e in error.errors())) from error
    dataset = prepare_source(name, out or Path("data") / name, settings, archive)
    counts = dataset.info["counts"]
    rows = ", ".join(f"{counts[s]:,} {s} ({counts[f'{s}_cold_start']:,} cold)" for s in ("train", "validation", "test"))
    typer.echo(f"{dataset.path}: {counts['users']:,} users, {counts['items']:,} items; examples: {rows}")
    typer.echo(f"look at it: reczero data show {dataset.path}")


def _mistake(error: Any) -> str:
    option = "".join(f"--{str(part).replace('_', '-')} " for part in error["loc"])
    given = f" (given: {error['input']})" if error["loc"] else ""
    return f"{option}{error['msg'].removeprefix('Value error, ')}{given}"


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A folder that `data prepare` made.")],
    example: Annotated[
        str | None, typer.Option(help="Print this example's prompt: USER:ITEM.", show_default=False, metavar="ID")
    ] = None,
) -> None:
    """Show statistics of a prepared data set, or the exact prompt of one example.

    Example: reczero data show data/ml-100k --example 196:242
    """
    from reczero.data import Dataset

    dataset = Dataset.open(folder)
    if example is None:
        _show_statistics(dataset)
    else:
        _show_example(dataset, example)


def _show_statistics(dataset: "Dataset") -> None:
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    found = dataset.statistics()
    counts = found["counts"]
    console.print(f"[bold]{dataset.name}[/] in {dataset.path}")
    console.print(
        f"{counts['interactions']:,} ratings by {counts['users']:,} users of {counts['items']:,} items, "
        f"density {found['density']:.2%}; {counts['texts']:,} with text; scale "
        f"{dataset.scale.min:g}-{dataset.scale.max:g} by {dataset.scale.step:g}"
    )
    console.print(
        f"{counts['repeats_dropped']:,} repeats dropped, {counts['items_without_title']:,} items without title; "
        f"licence: {dataset.info['licence'] or 'not stated'}",
        markup=False,
    )

    splits = Table("split", "rows", "cold start", "from", "to", "mean rating", title="Examples")
    for column in ("earlier by user", "earlier of item", "shown rows"):
        splits.add_column(f"{column}\n(median)")
    for split, row in found["splits"].items():
        first, last = (f"{datetime.fromtimestamp(row[end], UTC):%Y-%m-%d %H:%M}" for end in ("first", "last"))
        cold = f"{row['cold_start']:,} ({row['cold_start'] / row['rows']:.1%})"
        medians = (f"{row[key]:g}" for key in ("user_count", "item_count", "shown"))
        splits.add_row(split, f"{row['rows']:,}", cold, first, last, f"{row['rating']:.3f}", *medians)
    for numbers in splits.columns[1:]:
        numbers.justify = "right"
    console.print(splits)

    ratings = Table("rating", "rows", "share", "", title="Ratings")
    most = max(found["ratings"].values())
    for rating, rows in found["ratings"].items():
        share = f"{rows / counts['interactions']:.1%}"
        ratings.add_row(f"{rating:g}", f"{rows:,}", share, "█" * round(30 * rows / most))
    console.print(ratings)


def _show_example(dataset: "Dataset", example_id: str) -> None:
    from datetime import UTC, datetime

    from reczero.reasoning import Template

    found = dataset.example(example_id)
    row = found.row(0, named=True)
    (context,) = dataset.contexts(found)
    when = f"{datetime.fromtimestamp(row['timestamp'], UTC):%Y-%m-%d %H:%M:%S} UTC"
    cold = ", cold start" if row["cold_start"] else ""
    typer.echo(f"example {example_id}: {row['split']}{cold}, rated {row['rating']:g} at {when} (not in the prompt)")
    for message in Template(scale=dataset.scale).messages(context):
        typer.echo(f"\n--- {message['role']} ---\n{message['content']}")
