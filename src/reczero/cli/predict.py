"""`reczero predict`: a table of predictions, over night if need be."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reczero.errors import UserError

from .serve import Data, Endpoint, EndpointModel, ModelName, open_predictor


def predict(
    model: ModelName,
    what: Annotated[
        str,
        typer.Argument(
            help="A prepared data set (its folder, or a name such as ml-100k); or a file of requests: JSON lines as "
            "/v1/predict takes them, or a CSV or Parquet with user_id and item_id, which wants --data.",
            show_default=False,
            metavar="DATA | FILE",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The table to write, .parquet or .csv.", show_default=False)],
    split: Annotated[
        Literal["train", "validation", "test", "all"] | None,
        typer.Option(help="DATA: which of its examples.", show_default="test"),
    ] = None,
    data: Data = None,
    part: Annotated[
        str, typer.Option(help="Only this share of the rows, such as 3/16: so that 16 workers can take one each.")
    ] = "1/1",
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 64,
    endpoint: Endpoint = None,
    endpoint_model: EndpointModel = None,
) -> None:
    """Predict every row, with its reasoning, into a table; after a kill, the same command goes on.

    A row that can't be asked (an unknown id, a number off the scale) stays in the table with what is wrong in `fault`.

    Example: reczero predict runs/demo ml-100k -o predictions.parquet

    Example: reczero predict runs/demo pairs.csv --data ml-100k -o predictions.csv
    """
    from reczero.cli.progress import Progress
    from reczero.data import PUBLISHED, open_data
    from reczero.machine import keep_freed_memory

    is_data = (Path(what) / "dataset.json").is_file() or (what in PUBLISHED and not Path(what).exists())
    if is_data and data is not None:
        raise UserError("--data: DATA is a data set already; --data goes with a file of requests")

    if split is not None and not is_data:
        raise UserError("--split: is for a data set; a file of requests is predicted whole")

    keep_freed_memory()
    predictor = open_predictor(model, what if is_data else data, endpoint, endpoint_model)

    from reczero.data import WHOLE, Part
    from reczero.serving.bulk import Examples, Requests, Rows, predict_file

    share = Part.read(part)
    if share != WHOLE and out.suffix.lower() == ".csv":
        typer.echo("a part in a .csv can't be put together by `reczero join`, only one in a .parquet", err=True)
    with Progress() as progress:
        try:
            rows: Rows
            if is_data:
                facts = predictor.answering.template.settings.facts
                rows = Examples(open_data(what), None if split == "all" else split or "test", share, facts)
            else:
                rows = Requests(Path(what), predictor, share)
            if not rows.count and share == WHOLE:
                raise UserError(f"{what}: has no rows of split {split or 'test'}")
            found = predict_file(predictor, rows, out, batch_size, progress.say, progress.report)
        except KeyboardInterrupt:
            progress.say("interrupted; the same command goes on from here")
            raise
    _tell(out, found)
    if found["failed"] == found["rows"] > 0:
        raise UserError(f"{what}: not one row could be asked; {out} says why of each")


def join(
    tables: Annotated[
        list[Path],
        typer.Argument(help="What `reczero predict --part` wrote to .parquet, all parts.", metavar="TABLE…"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The table to write, .parquet or .csv.", show_default=False)],
) -> None:
    """Put the tables of all parts of a prediction together, as one process would have written them.

    Example: reczero join part-*.parquet -o predictions.parquet
    """
    from reczero.serving.bulk import join_tables

    found = join_tables(tables, out, lambda text: typer.echo(text, err=True))
    _tell(out, found)


def _tell(out: Path, found: dict[str, Any]) -> None:
    typer.echo(f"{out}: {found['rows']:,} rows, {found['malformed']:,} malformed answers", nl=not found["failed"])
    if found["failed"]:
        typer.echo(f", {found['failed']:,} rows that could not be asked (the first: {found['first']})")
