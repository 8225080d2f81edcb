"""`reczero data`: list, fetch, prepare and show data sets."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from reczero.data import Dataset

app = typer.Typer(
    no_args_is_help=True,
    help="Get ratings, make examples of them, look at them.\n\nExample: reczero data prepare ml-100k --out data/ml",
)

SHOWN_TOKENS = 200  # prompts that `data show` counts the tokens of


@app.command("list")
def list_sources() -> None:
    """Show the data sets that are known by name (size, scale, licence, how to get them), and the sources that are read.

    Example: reczero data list
    """
    from reczero.data import PUBLISHED, SOURCES
    from reczero.files import cache_dir

    typer.echo("Data sets: reczero data prepare NAME --out DIR")
    for known in PUBLISHED.values():
        there = "; is in the cache" if known.there(cache_dir()) else ""
        typer.echo(f"\n{known.name}: {known.title}{there}")
        typer.echo(f"  size     {known.size}\n  scale    {known.scale}\n  source   {known.source}")
        typer.echo(f"  licence  {known.licence}\n  get it   {known.how_to_get}")
    typer.echo("\nSources: reczero data prepare --source NAME --reviews FILE --items FILE --out DIR")
    for source in SOURCES.values():
        typer.echo(f"\n{source.name}: {source.title}; scale {source.scale}")
        typer.echo(f"  --reviews  {source.reviews}\n  --items    {source.items}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A data set, as in `reczero data list`.")],
    archive: Annotated[
        str | None,
        typer.Option(help="The publisher's file, got elsewhere: a path or URL.", show_default=False, metavar="PATH"),
    ] = None,
) -> None:
    """Bring a data set to the cache ($RECZERO_HOME, else ~/.cache/reczero), checked.

    What has no public address is not fetched: what to download, and where to put it, is printed.

    Example: reczero data fetch ml-100k
    """
    from reczero.data import PUBLISHED
    from reczero.errors import unknown
    from reczero.files import cache_dir

    if name not in PUBLISHED:
        raise unknown("data set", name, PUBLISHED)
    known = PUBLISHED[name]
    given = known.fetch(cache_dir(), archive)
    files = ", ".join(str(path) for path in (given.reviews, given.items) if path)
    typer.echo(f"{name}: in {files}\nlicence: {known.licence}")


@app.command()
def prepare(
    name: Annotated[
        str | None,
        typer.Argument(help="A data set of `reczero data list` (fetched when it is not there), or a recipe's file."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write.", show_default="data/NAME")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Take everything from this recipe's `data` section.", show_default=False)
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="How to read the files: table, amazon2018, … (`reczero data list`).", show_default=False),
    ] = None,
    reviews: Annotated[
        str | None,
        typer.Option(
            "--reviews",
            "--archive",
            help="The ratings and reviews: a file or URL; plain, .gz or .zip.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    items: Annotated[
        str | None,
        typer.Option(help="What is known of the items: a file or URL.", show_default=False, metavar="FILE"),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of a table: user=…,item=…,rating=…,timestamp=…,review=…,title=…; #N is the N-th of a file "
            "without header.",
            show_default="guessed",
            metavar="OURS=THEIRS,…",
        ),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Rating scale of a table.", show_default="guessed", metavar="MIN-MAX[:STEP]")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of a table in text.", show_default="utf-8")] = None,
    time_format: Annotated[
        str | None,
        typer.Option(help="s, ms, us, ns, or a strftime format such as %d/%m/%Y.", show_default="guessed"),
    ] = None,
    # The defaults are those of PrepareSettings, which is not imported for --help; a test holds the two together.
    split: Annotated[
        str | None,
        typer.Option(help="time, leave-last-k (each user's newest rows), or random (leaks).", show_default="time"),
    ] = None,
    train: Annotated[
        float | None, typer.Option(help="Share of the rows, the oldest, to train on.", show_default="0.8")
    ] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share after those, to choose a checkpoint on.", show_default="0.1")
    ] = None,
    test: Annotated[
        float | None, typer.Option(help="Share of the rows, the newest, to report on.", show_default="0.1")
    ] = None,
    validation_from: Annotated[
        str | None,
        typer.Option(help="Split by dates instead: validation begins here.", show_default="None", metavar="DATE"),
    ] = None,
    test_from: Annotated[
        str | None, typer.Option(help="And the test period here.", show_default="None", metavar="DATE")
    ] = None,
    leave_last: Annotated[
        int | None,
        typer.Option(help="leave-last-k: rows a user to test on, as many to validate on.", show_default="1"),
    ] = None,
    users: Annotated[
        int | None, typer.Option(help="Targets of so many users only, drawn by the seed.", show_default="None")
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
    max_bad: Annotated[
        float | None, typer.Option(help="A larger share of bad rows stops it.", show_default="0.01")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the random split and the sample of users.", show_default="0")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="Only read and check this share of the rows, such as 3/16, for --join: 16 workers can take one each.",
            show_default=False,
            metavar="K/N",
        ),
    ] = None,
    join: Annotated[
        int | None,
        typer.Option(
            help="Make it of the N parts that --part left beside --out.",
            show_default=False,
            metavar="N",
            min=1,
            max=10**6,
        ),
    ] = None,
) -> None:
    """Split ratings by time and make an example of each, with all that was known the moment before.

    Example: reczero data prepare ml-100k --out data/ml-100k

    Example: reczero data prepare --source amazon2018 --reviews Books_5.json.gz --items meta_Books.json.gz

    Example: reczero data prepare --source table --reviews ratings.csv --items films.csv --out data/mine

    Example: reczero data prepare ml-100k --out data/ml-100k --part 1/2 (and 2/2, elsewhere; then --join 2)
    """
    from pydantic import ValidationError

    from reczero.cli.progress import Progress
    from reczero.data import PUBLISHED, SOURCES, Part, join_parts, prepare_part, prepare_source
    from reczero.errors import UserError
    from reczero.recipes import DataRecipe, load_recipe, shipped

    if part and join:
        raise UserError("--part and --join: first every part, then the join; give one of them.")
    share = Part.read(part) if part else None
    is_data = name in {**PUBLISHED, **SOURCES}
    if name and not recipe and not is_data and (name in shipped() or name.endswith((".yaml", ".yml"))):
        name, recipe = None, name
    if name and (source or recipe):
        raise UserError(f"{name}: name a data set, --source or --recipe, one of them.")
    if not (name or recipe or source):
        if reviews is None:
            raise UserError("what is to be prepared? Name a data set, or --source and --reviews, or --recipe.")
        source = "table"
    options: dict[str, Any] = dict(
        dataset=name, source=source, reviews=reviews, items=items, columns=_columns(columns), scale=scale,
        encoding=encoding, time_format=time_format, split=split, train=train, validation=validation, test=test,
        validation_from=validation_from, test_from=test_from, leave_last=leave_last, users=users, k_core=k_core,
        history=history, min_user_history=min_user_history, min_item_history=min_item_history,
        min_context=min_context, max_bad=max_bad, seed=seed,
    )  # fmt: skip
    told = load_recipe(recipe).data.model_dump() if recipe else {}
    try:
        data = DataRecipe(**told | {key: value for key, value in options.items() if value is not None})
    except ValidationError as error:
        raise UserError("; ".join(_mistake(e) for e in error.errors())) from error
    folder = out or Path("data") / (name or (Path(recipe).stem if recipe else "") or source or "table")
    with Progress() as progress:
        if share:
            there = prepare_part(data.origin, folder, share, data.settings, progress.moved)
        elif join:
            dataset = join_parts(data.origin, folder, join, data.settings, progress.moved)
        else:
            dataset = prepare_source(data.origin, folder, data.settings, progress.moved)
    if not share:
        _tell(dataset)
    elif there == folder:
        typer.echo(f"{folder}: is there already, made of the same files with the same options")
    else:
        typer.echo(f"{there}: part {part} is there; when all are: the same command with --join {share.of}")


def _columns(text: str | None) -> dict[str, str] | None:
    """`user=a,item=b` -> {"user": "a", "item": "b"}."""
    from reczero.errors import UserError

    if text is None:
        return None
    pairs = [part.split("=", 1) for part in text.split(",") if part.strip()]
    if any(len(pair) != 2 or not all(side.strip() for side in pair) for pair in pairs):
        raise UserError(f"--columns {text}: write user=THEIRS,item=THEIRS and so on.")
    if len({ours.strip() for ours, _ in pairs}) < len(pairs):
        raise UserError(f"--columns {text}: names one of our columns twice.")
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}


def _mistake(error: Any) -> str:
    option = "".join(f"--{str(part).replace('_', '-')} " for part in error["loc"])
    given = f" (given: {error['input']})" if error["loc"] else ""
    return f"{option}{error['msg'].removeprefix('Value error, ')}{given}"


def _tell(dataset: "Dataset") -> None:
    """What was found, what was made, what was put aside."""
    from reczero.data import LEAKS
    from reczero.errors import printable

    info, counts = dataset.info, dataset.info["counts"]
    for what, found in info["found"].items():
        typer.echo(printable(f"{what}: {found}"))
    typer.echo(f"scale: {dataset.scale.min:g}-{dataset.scale.max:g} by {dataset.scale.step:g}")
    rows = ", ".join(f"{counts[s]:,} {s} ({counts[f'{s}_cold_start']:,} cold)" for s in ("train", "validation", "test"))
    typer.echo(f"{dataset.path}: {counts['users']:,} users, {counts['items']:,} items; examples: {rows}")
    if counts["repeats_dropped"]:
        dropped = f"{counts['repeats_dropped']:,} of {counts['interactions'] + counts['repeats_dropped']:,}"
        typer.echo(f"repeats: {dropped} rows dropped: of a user's ratings of one item the earliest is kept")
    if (bare := counts["items_without_title"]) and "items" not in info["found"]:
        unmet = "; do the ids of the two files meet?" if bare == counts["items"] else ""
        typer.echo(f"warning: {bare:,} of {counts['items']:,} items have no title{unmet}", err=True)
    for table, key in (("interactions", "quarantined"), ("items", "items_quarantined")):
        if counts[key]:
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in counts[key].items())
            total = sum(counts[key].values())
            typer.echo(f"put aside: {total:,} rows of the {table} ({reasons}), in {dataset.path / 'quarantine.jsonl'}")
    for split in ("train", "validation", "test"):
        if not counts[split]:
            typer.echo(f"warning: no {split} rows; choose other shares, dates or --leave-last.", err=True)
    if info["settings"]["split"] == "random":
        typer.echo(f"warning: {LEAKS}.", err=True)
    typer.echo(f"look at it: reczero data show {dataset.path}")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A folder that `data prepare` made.")],
    example: Annotated[
        str | None, typer.Option(help="Print this example's prompt: USER:ITEM.", show_default=False, metavar="ID")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Write prompts as this recipe does.", show_default="all fields, full instructions"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Count the tokens of prompts for this model: a hub name, a folder, or smollm2-135m.",
            show_default="the recipe's, or smollm2-135m if it is in the cache",
        ),
    ] = None,
) -> None:
    """Show statistics of a prepared data set, or the exact prompt of one example.

    Example: reczero data show data/ml-100k --example 196:242
    """
    from reczero.data import Dataset
    from reczero.reasoning import Template, TemplateSettings
    from reczero.recipes import load_recipe

    dataset = Dataset.open(folder)
    _ = dataset.fingerprint  # nothing is shown of files that were changed or damaged since
    told = load_recipe(recipe) if recipe else None
    kept = dataset.info["settings"]["history"]
    shown = told.rollout.template if told else TemplateSettings(history=kept, opinions=kept)
    template = Template(shown, dataset.scale)
    if example is not None:
        _show_example(dataset, example, template)
        return
    _show_statistics(dataset)
    _show_lengths(dataset, template, model or (told.model.name if told else None))


def _show_statistics(dataset: "Dataset") -> None:
    from rich.console import Console
    from rich.table import Table

    from reczero.data import when

    console = Console(highlight=False)
    found = dataset.statistics()
    counts = found["counts"]
    console.print(f"[bold]{dataset.name}[/] in {dataset.path}")
    console.print(
        f"{counts['interactions']:,} ratings by {counts['users']:,} users of {counts['items']:,} items, "
        f"density {found['density']:.2%}; {counts['texts']:,} with text; scale "
        f"{dataset.scale.min:g}-{dataset.scale.max:g} by {dataset.scale.step:g}"
    )
    aside = sum(counts["quarantined"].values())
    console.print(
        f"{counts['repeats_dropped']:,} repeats dropped, {aside:,} bad rows put aside, "
        f"{counts['items_without_title']:,} items without title; licence: {dataset.info['licence'] or 'not stated'}",
        markup=False,
    )

    splits = Table("", *found["splits"], title=f"Examples, split {dataset.info['settings']['split']}")
    lines: dict[str, Callable[[dict[str, Any]], str]] = {
        "rows": lambda row: f"{row['rows']:,}",
        "cold start": lambda row: f"{row['cold_start']:,} ({row['cold_start'] / row['rows']:.1%})",
        "from": lambda row: when(row["first"]) if dataset.info["timed"] else "no times",
        "to": lambda row: when(row["last"]) if dataset.info["timed"] else "no times",
        "mean rating": lambda row: f"{row['rating']:.3f}",
        "earlier by the user (median)": lambda row: f"{row['user_count']:g}",
        "earlier of the item (median)": lambda row: f"{row['item_count']:g}",
        "shown, both sides (median)": lambda row: f"{row['shown']:g}",
    }
    for what, write in lines.items():
        splits.add_row(what, *(write(row) for row in found["splits"].values()))
    for numbers in splits.columns[1:]:
        numbers.justify = "right"
    console.print(splits)

    ratings = Table("rating", "rows", "share", "", title="Ratings")
    most = max(found["ratings"].values())
    for rating, rows in found["ratings"].items():
        share = f"{rows / counts['interactions']:.1%}"
        ratings.add_row(f"{rating:g}", f"{rows:,}", share, "█" * round(30 * rows / most))
    console.print(ratings)


def _show_lengths(dataset: "Dataset", template: Any, model: str | None) -> None:
    """How long prompts are, of rows spread over time: in characters, and in tokens of a model if there is one."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from reczero.models import load_tokenizer
    from reczero.models.packaged import packaged_dir

    examples = dataset.examples(cold_start=None, limit=SHOWN_TOKENS)
    prompts = [template.messages(context) for context in dataset.contexts(examples, template.settings.facts)]
    lengths = {"characters": [sum(len(message["content"]) for message in prompt) for prompt in prompts]}
    if model is None and (packaged_dir("smollm2-135m") / "config.json").is_file():
        model = "smollm2-135m"
    if model is not None:
        tokenizer = load_tokenizer(model)
        ids = [
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False) for prompt in prompts
        ]
        lengths[f"tokens of {model}"] = [len(prompt) for prompt in ids]
    table = Table("length in", "median", "95 % under", "longest", title=f"Prompts of {len(prompts)} rows")
    for what, values in lengths.items():
        table.add_row(what, *(f"{value:,.0f}" for value in (np.median(values), np.quantile(values, 0.95), max(values))))
    for numbers in table.columns[1:]:
        numbers.justify = "right"
    console = Console(highlight=False)
    console.print(table)
    if model is None:
        console.print("in tokens: add --model NAME", markup=False)


def _show_example(dataset: "Dataset", example_id: str, template: Any) -> None:
    from reczero.data import when
    from reczero.errors import printable

    found = dataset.example(example_id)
    row = found.row(0, named=True)
    (context,) = dataset.contexts(found, template.settings.facts)
    at = f" at {when(row['timestamp'])}:{row['timestamp'] % 60:02d} UTC" if dataset.info["timed"] else ""
    cold = ", cold start" if row["cold_start"] else ""
    typer.echo(
        f"example {printable(example_id)}: {row['split']}{cold}, rated {row['rating']:g}{at} (not in the prompt)"
    )
    for message in template.messages(context):
        typer.echo(f"\n--- {message['role']} ---\n{message['content']}")
