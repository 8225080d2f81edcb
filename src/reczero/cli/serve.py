"""`reczero serve`, `reczero recommend`: a model at work."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reczero.errors import UserError

if TYPE_CHECKING:
    from reczero.serving import Predictor

ModelName = Annotated[
    str,
    typer.Argument(help="A run, a model folder, a hub name, smollm2-135m or smollm2-135m-recone.", show_default=False),
]
Data = Annotated[
    str | None,
    typer.Option(help="A prepared data set (its folder, or a name such as ml-100k): users and items by id."),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        help="Address of an OpenAI-compatible server, ending on /v1, that has the model; MODEL then only tells how it "
        "is prompted. Its key: OPENAI_API_KEY.",
        show_default=False,
    ),
]
EndpointModel = Annotated[str | None, typer.Option(help="The model's name at the endpoint.", show_default="its first")]


def serve(
    model: ModelName,
    data: Data = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; one that others can reach wants RECZERO_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are told to come again.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Predictions that are decoded together.")] = 32,
    time_limit: Annotated[float, typer.Option(min=1, max=3600, help="Seconds for a request, waiting included.")] = 120,
    endpoint: Endpoint = None,
    endpoint_model: EndpointModel = None,
) -> None:
    """Serve predictions with their reasons over HTTP, and a page to try them at /.

    With RECZERO_API_KEY in the environment, clients must send it: Authorization: Bearer KEY. See docs/serving.md.

    Example: reczero serve runs/demo --data ml-100k --port 8000

    Example: reczero serve smollm2-135m-recone (trained on films, and comes with the package)
    """
    from reczero.serving.listening import hold

    place = hold(host, port)
    predictor = open_predictor(model, data, endpoint, endpoint_model)

    from reczero.serving.server import serve as run

    run(
        predictor, place, queue=queue, batch_size=batch_size, time_limit=time_limit,
        say=lambda text: typer.echo(text, err=True),
    )  # fmt: skip


def recommend(
    model: ModelName,
    user: Annotated[str | None, typer.Option(help="A user of the data set.", show_default=False)] = None,
    history: Annotated[
        Path | None,
        typer.Option(help="JSON lines with title and rating, oldest first, instead of --user.", show_default=False),
    ] = None,
    data: Data = None,
    candidates: Annotated[
        Path | None,
        typer.Option(
            help="Item ids, one a line; or JSON lines with a title.", show_default="50 well rated ones, new to the user"
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many of them.")] = 10,
    reasons: Annotated[bool, typer.Option("--reasons", help="Show the reasoning of each.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines to stdout, instead of a table.")] = False,
    endpoint: Endpoint = None,
    endpoint_model: EndpointModel = None,
) -> None:
    """The candidates that a user would rate highest, the best first.

    Example: reczero recommend runs/demo --data ml-100k --user 405 -k 5 --reasons
    """
    if (user is None) == (history is None):
        raise UserError("give either --user with --data, or --history FILE")
    if user is not None and data is None:
        raise UserError("--user: is of a data set; name it: --data")
    asked: dict[str, object] = {"user_id": user} if user is not None else {"history": _lines(history)}
    if candidates is not None:
        asked |= _candidates(candidates)
    predictor = open_predictor(model, data, endpoint, endpoint_model)

    from reczero.cli.progress import Progress

    done = 0
    with Progress() as progress:

        def moved(count: int) -> None:
            nonlocal done
            done += count
            progress.say(f"{done} candidates answered")

        found = predictor.recommend(k=k, progress=moved, **asked)  # type: ignore[arg-type]
    if as_json:
        for one in found:
            line: dict[str, object] = {"id": one.id, "title": one.title, "rating": one.prediction.rating}
            line |= {"expected": one.prediction.expected, "reasoning": one.prediction.reasoning}
            typer.echo(json.dumps(line, ensure_ascii=False))
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for name, justify in (("", "right"), ("item", "left"), ("rating", "right"), ("expected", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    from reczero.errors import printable

    for place, one in enumerate(found, 1):
        title = Text(printable(one.title) + (f"  ({printable(one.id)})" if one.id else ""))
        if reasons:
            for text in one.prediction.reasoning.values():
                title.append("\n" + printable(text), style="dim")
        rating, expected = one.prediction.rating, one.prediction.expected
        table.add_row(
            str(place), title, "–" if rating is None else f"{rating:g}", "–" if expected is None else f"{expected:.2f}"
        )
    Console(width=None if os.isatty(1) else 120).print(table)


def open_predictor(model: str, data: str | None, endpoint: str | None, endpoint_model: str | None) -> "Predictor":
    """The model that a command names, here or at an endpoint."""
    from reczero.data import open_data
    from reczero.serving import Predictor

    opened = open_data(data) if data is not None else None
    if endpoint is not None:
        return Predictor.from_endpoint(endpoint, model, endpoint_model, opened)
    if endpoint_model is not None:
        raise UserError("--endpoint-model: goes with --endpoint")
    return Predictor.from_pretrained(model, opened)


def _lines(path: Path | None) -> list[object]:
    assert path is not None
    try:
        texts = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as UTF-8 text ({getattr(error, 'strerror', None) or error})"
        ) from error
    found: list[object] = []
    for number, text in enumerate(texts, 1):
        try:
            if text.strip():
                found.append(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: is no JSON ({error})") from error
    return found


def _candidates(path: Path) -> dict[str, object]:
    """Titles, where the first line is a JSON object; else ids."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as UTF-8 text ({getattr(error, 'strerror', None) or error})"
        ) from error
    if text.lstrip().startswith("{"):
        return {"candidates": _lines(path)}
    return {"candidate_ids": list(dict.fromkeys(line.strip() for line in text.split("\n") if line.strip()))}
