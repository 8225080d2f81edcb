"""What a comparison found, in other forms than its tables: sentences, a table for a paper, what the probes moved."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from reczero.reasoning.scale import Scale

from . import metrics
from .compare import user_codes

UNALTERED = "unaltered"
PROBES = {  # name -> what is altered; docs/evaluation.md
    UNALTERED: "Nothing: the answers that the others are held against.",
    "other-user": "History, average and count are another user's.",
    "shuffled-history": "The history's entries stand in another order.",
    "no-history": "Nothing is known of the user.",
    "no-item-text": "The item has no title, attributes or reviews; its average stays.",
    "own-reasoning": "Nothing: its own reasoning is handed back. A control: nothing should move.",
    "cut-reasoning": "Each section of its reasoning ends after half of its tokens.",
    "other-reasoning": "The reasoning is what it wrote about another row.",
}


def probed(
    rows: pl.DataFrame, table: pl.DataFrame, scale: Scale, fallback: float, rounds: int, seed: int
) -> list[dict[str, Any]]:
    """Of each probe: how far the rating moves from the unaltered one and how the error changes, with 95 % intervals.

    table: each probe's answers in the order of `rows`. moved: mean |altered - unaltered| of the number; moved_expected:
    of the distribution's mean; changed: share of rows whose number is another one; mae, and mae_change against
    unaltered with its interval and p value.
    """
    truth, users = rows["rating"].cast(pl.Float64).to_numpy(), user_codes(rows)
    grid = np.asarray(scale.grid())
    numbers, means = {}, {}
    for (name,), part in table.group_by("probe", maintain_order=True):
        numbers[str(name)] = metrics.answered(part["prediction"].fill_null(float("nan")).to_numpy(), fallback)
        nothing = [float("nan")] * len(grid)
        given = np.array([row or nothing for row in part["distribution"].to_list()], float) @ grid
        means[str(name)] = metrics.answered(given, fallback)
    before, before_mean = numbers[UNALTERED], means[UNALTERED]
    found = []
    for name, after in numbers.items():
        moved = metrics.score(before, {name: after}, users, fallback, rounds, seed)[name].mae
        expected = metrics.score(before_mean, {name: means[name]}, users, fallback, rounds, seed)[name].mae
        change = metrics.paired_difference(truth, after, before, users, fallback, rounds, seed)
        found.append(
            {"probe": name, "rows": rows.height}
            | {"moved": moved.value, "moved_low": moved.low, "moved_high": moved.high}
            | {"moved_expected": expected.value, "changed": float((np.abs(after - before) > 1e-9).mean())}
            | {"mae": metrics.mae(truth, after), "mae_change": change.mae.value}
            | {"mae_change_low": change.mae.low, "mae_change_high": change.mae.high, "p": change.p_mae}
        )
    return [{k: None if v != v else v for k, v in line.items()} for line in found]


def summary(found: Mapping[str, Any]) -> list[str]:
    """Sentences under the table on the terminal: decodings, cold starts, probes, the closest opponents."""
    said = []
    for name, decoding in found["decoding"].items():
        best = decoding["best"]
        chosen = f"{best['mae']} is the decoding for MAE and {best['rmse']} for RMSE"
        said.append(f"{name}: by {decoding['rows']} validation rows, {chosen}")
    ours = {pair["model"] for pair in found["pairs"]}
    mae = {row["model"]: row["mae"] for row in found["comparison"]}
    for name in sorted(ours, key=lambda name: mae[name])[:3]:
        own = [pair for pair in found["pairs"] if pair["model"] == name and pair["against"] not in ours]
        if own:
            best_pair = min(own, key=lambda pair: mae[pair["against"]])
            p = best_pair["p_mae_holm"]
            said.append(
                f"{name} against {best_pair['against']}, the best of the others: MAE {best_pair['mae']:+.3f}"
                + ("" if p is None else f", p = {p:.2g} (Holm, {len(found['pairs'])} pairs)")
            )
    if found["rows"]["cold_start"]:
        said.append(f"{found['rows']['cold_start']:,} cold starts have their own table: cold_start.csv")
    for name, lines in found["probes"].items():
        moved = ", ".join(f"{line['probe']} {line['moved']:.3f}" for line in lines if line["probe"] != UNALTERED)
        said.append(f"{name}, how far its rating moves under probes: {moved}")
    return said


def latex(table: pl.DataFrame) -> str:
    """The main table for a paper that uses booktabs."""
    lines = [
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        r"Model & MAE & 95\,\% interval & RMSE & 95\,\% interval & parsed \\",
        r"\midrule",
    ]
    for row in table.sort("mae", maintain_order=True).iter_rows(named=True):
        name = re.sub(r"([_&%#$])", r"\\\1", row["model"])

        def interval(figure: str, row: dict[str, Any] = row) -> str:
            low, high = row[f"{figure}_low"], row[f"{figure}_high"]
            return "" if low is None else f"{low:.3f}--{high:.3f}"

        cells = [name, f"{row['mae']:.3f}", interval("mae"), f"{row['rmse']:.3f}", interval("rmse")]
        lines.append(" & ".join([*cells, rf"{100 * row['parse_rate']:.1f}\,\%"]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
