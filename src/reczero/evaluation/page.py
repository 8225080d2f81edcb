"""What the reports of a run and of a comparison share: one page, its main table, its pictures, examples to browse."""

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reczero import __version__
from reczero.errors import UserError
from reczero.evaluation import charts
from reczero.evaluation.baselines import FALLBACK, is_baseline
from reczero.evaluation.compare import UNTRAINED, fallback_of, shown_rows
from reczero.files import atomic_file, sha256
from reczero.reasoning.scale import Scale

LONG_FACT = 44  # characters
GOOD, BAD = 0.125, 0.375  # of the scale's width: 0.5 and 1.5 points on a scale from 1 to 5
MOST_BARS = 21  # ratings of a scale whose distribution a card still shows
_SECTIONS = {"analyze_user": "The user", "analyze_item": "The item", "match": "How they fit", "think": "Thoughts"}


class Cell(NamedTuple):
    """A number in a table; `value` is what it is sorted by, None stands last."""

    text: str
    value: float | None = None
    small: str = ""


class Table(NamedTuple):
    """A table that can be sorted. columns: (heading, order that has the best first), that of the rows' names first.

    rows: (name, whether it is one of ours, cells). by: the column that they are in the order of.
    """

    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, bool, Sequence[Cell]]]
    by: int | None = None


def cell(value: float | None, form: str = "{:.3f}", low: float | None = None, high: float | None = None) -> Cell:
    """A number, and its interval where it has one."""
    if value is None:
        return Cell("\u2013")
    interval = "" if low is None or high is None else f"{form.format(low)}\u2013{form.format(high)}"
    if "+" in form:
        interval = interval.replace("\u2013", " to ").replace("-", "\u2212")
    return Cell(form.format(value).replace("-", "\u2212"), value, interval)


def share(value: float | None, places: int = 1) -> Cell:
    return cell(value) if value is None else Cell(percent(value, places), value)


def percent(share: float, places: int = 0) -> str:
    return f"{100 * share:.{places}f}\u00a0%"


def write_page(folder: Path, files: Iterable[Path], facts: Iterable[tuple[str, str]], **content: Any) -> Path:
    """Write `report.html` and return its path. files: what it rests on, those that are there; facts: (name, value)."""
    page = (
        _environment()
        .get_template("report.html")
        .render(
            run=folder.resolve().name,
            hashes=[(str(file.relative_to(folder)), sha256(file)) for file in files if file.is_file()],
            version=__version__,
            facts=sorted(facts, key=lambda fact: len(fact[1]) > LONG_FACT),  # these take a line each, at the end
            long_fact=LONG_FACT,
            **_assets(),
            **content,
        )
    )
    target = folder / "report.html"
    with atomic_file(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reczero.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}  # sections keep their order
    return environment


def _assets() -> dict[str, Any]:
    """Style, script, and the script's hash: the page's own policy lets no other script run, and nothing be loaded."""
    folder = Path(__file__).parent / "templates"
    script = (folder / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "style": Markup((folder / "report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": f"sha256-{digest}",
    }


def main_rows(table: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the comparison, best MAE first, each with its whiskers' places in percent of a common axis.

    One very bad model (the untrained one, as a rule) would squeeze all others together, so the axis ends at three times
    the reach of the better half and what lies beyond is an arrow at its edge.
    """
    rows = sorted((dict(row) for row in table), key=lambda row: row["mae"])
    for metric in ("mae", "rmse"):
        ends = [
            [row[key] for key in (metric, f"{metric}_low", f"{metric}_high") if row.get(key) is not None]
            for row in rows
        ]
        ends.sort(key=max)
        low = min((min(values) for values in ends), default=0.0)
        half = max((max(values) for values in ends[: (len(ends) + 1) // 2]), default=1.0)
        width = max(min(max((max(values) for values in ends), default=1.0) - low, 3 * (half - low)), 1e-9)

        def place(value: float, low: float = low, width: float = width) -> float:
            return round(2 + 92 * min(1.0, (value - low) / width), 2)

        constants = [row[metric] for row in rows if is_baseline(row["model"]) and row["mode_share"] == 1]
        for row in rows:
            left, right = row[f"{metric}_low"], row[f"{metric}_high"]
            beyond = row[metric] > low + width
            row[f"{metric}_at"] = None if beyond else place(row[metric])
            row[f"{metric}_span"] = None if left is None else (place(left), round(place(right) - place(left), 2))
            row[f"{metric}_mark"] = place(min(constants)) if constants else None
    return [row | {"ours": not is_baseline(row["model"])} for row in rows]


def pictures(
    examples: pl.DataFrame,
    answers: dict[str, np.ndarray],
    scale: Scale | None,
    beside: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """A heat map of each model, and one histogram of all, in which those `beside` them stand too."""
    if examples.is_empty() or not answers:
        return []
    truth = examples["rating"].cast(pl.Float64).to_numpy()
    levels = charts.rating_levels(np.concatenate([truth, *answers.values()]), scale)
    note = "Rows by true and predicted rating, shaded by the share within each true rating; framed: right on."
    drawn = [
        {
            "title": name,
            "svg": Markup(charts.heat_map(html.escape(name), truth, given, levels, name != UNTRAINED)),
            "note": note,
        }
        for name, given in answers.items()
    ]
    svg = charts.histogram(truth, {**answers, **(beside or {})}, levels)
    note = "A model that says one rating to everybody shows as a single tall bar."
    return [*drawn, {"title": "All ratings", "svg": Markup(svg), "note": note}]


def island(
    examples: pl.DataFrame,
    frames: Mapping[str, pl.DataFrame],
    answers: Mapping[str, np.ndarray],
    ours: list[str],
    scale: Scale | None,
    prompt_of: str | None = None,
    groups: Sequence[tuple[str, str, np.ndarray]] = (),
) -> dict[str, Any]:
    """The browsable examples as plain data for the page's script; never markup.

    prompt_of: whose prompts those of the examples are; None: all models'. groups: (slice, group, (rows,) bool) to
    choose by; with any, a prediction's distribution is shown too.
    """
    truth = examples["rating"].cast(pl.Float64).to_numpy() if examples.height else np.zeros(0)
    levels = charts.rating_levels(np.concatenate([truth, *(answers[name] for name in ours)]), scale)
    width = float(levels[-1] - levels[0])
    chosen = shown_rows(examples.height)
    groups = [group for group in groups if group[2][chosen].any()]
    grid = scale.grid() if scale and groups else ()
    data: dict[str, Any] = {
        "models": ours,
        "min": float(levels[0]),
        "max": float(levels[-1]),
        "good": GOOD * width,
        "bad": BAD * width,
        "fallback": fallback_of(answers) if FALLBACK in answers else None,
        "sections": _SECTIONS,
        "prompt_of": prompt_of,
        "groups": [group[:2] for group in groups],
        "grid": grid if len(grid) <= MOST_BARS else [],
        "examples": [],
    }
    if examples.is_empty() or not ours:
        return data
    shown = examples[chosen.tolist()]
    wanted = pl.col("example_id").cast(pl.String).is_in(shown["example_id"].cast(pl.String).to_list())
    said = {
        name: {str(row["example_id"]): row for row in frames[name].filter(wanted).iter_rows(named=True)}
        for name in ours
    }
    for index, example in zip(chosen, shown.iter_rows(named=True), strict=True):
        given = {}
        for name in ours:
            row = said[name].get(str(example["example_id"]), {})
            value = answers[name][index]
            given[name] = {
                "rating": float(value) if np.isfinite(value) else None,
                "reasoning": {key: text for key, text in (row.get("reasoning") or {}).items() if text},
                "text": row.get("text"),
            }
            if data["grid"] and (distribution := row.get("distribution")):
                given[name]["distribution"] = [round(p, 3) for p in distribution]
        fields = ("user_id", "timestamp", "user_avg", "item_avg", "user_count", "item_count", "prompt")
        data["examples"].append(
            {key: example.get(key) for key in fields}
            | {
                "title": example.get("title") or example.get("item_id"),
                "truth": float(example["rating"]),
                "given": given,
            }
            | ({"in": [k for k, group in enumerate(groups) if group[2][index]]} if groups else {})
        )
    return _finite(data)


# Reading ------------------------------------------------------------------------------------------------------------


def json_of(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON; restore it or run what wrote it again") from error
    return content if isinstance(content, dict) else {}


def parquet_of(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file; remove it and write the report again") from error


def _finite(value: Any) -> Any:
    """The same structure with None for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
