"""The report of a comparison (`study.py`): what comparison.json holds, as sentences, tables and pictures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from reczero.errors import UserError
from reczero.reasoning.scale import Scale

from . import charts, slices
from .baselines import is_baseline
from .compare import COLUMNS, align, read_examples
from .findings import PROBES, summary
from .page import Cell, Table, cell, island, json_of, main_rows, parquet_of, percent, pictures, share, write_page
from .study import PAIRS

MOST_GROUPS = 12  # of a slice that one picture holds
MOST_SERIES = 4
BROWSED = 3  # baselines to browse where there is nothing of ours
UP, DOWN = "ascending", "descending"
_HOLDS = {
    "data": dict, "scale": dict, "rows": dict, "settings": dict, "baseline_settings": dict, "decoding": dict,
    "warnings": list, "comparison": list, "cold_start": list, "pairs": list, "slices": list, "calibration": dict,
    "probes": dict, "versions": dict, "fallback": float,
}  # fmt: skip
_KEYS: dict[str, Sequence[str]] = {  # of it, or of each of its lines
    "comparison": COLUMNS, "cold_start": COLUMNS, "pairs": PAIRS, "slices": slices.COLUMNS,
    "rows": ("main", "cold_start"), "scale": ("min", "max", "step"),
    "settings": ("models", "predictions", "min_user_history", "min_item_history", "rounds", "seed"),
}  # fmt: skip
_FURTHER = {  # column of the main table -> heading, order with the best first, how it is written
    "macro_mae": ("Macro MAE", UP, "{:.3f}"),
    "near": ("Within ½", DOWN, "%"),
    "pairwise": ("In order", DOWN, "%"),
    "rps": ("RPS", UP, "{:.3f}"),
    "tokens": ("Tokens", UP, "{:,.0f}"),
    "seconds": ("Seconds", UP, "{:,.3f}"),
}
_FILTERS = ("user's earlier ratings", "item's earlier ratings", "category")


def write_study_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a comparison and return its path.

    Every number is one of comparison.json; pictures of ratings and the examples come from the tables beside it.
    Raises UserError for anything unreadable.
    """
    found = _read(folder / "comparison.json")
    scale, lines = Scale(**found["scale"]), found["comparison"]
    by_mae = [row["model"] for row in sorted(lines, key=lambda row: row["mae"])]
    examples = read_examples(folder) if (folder / "test_examples.parquet").is_file() else pl.DataFrame()
    tables = {name: folder / "predictions" / f"{name}.parquet" for name in by_mae} if examples.height else {}
    kept = [name for name, path in tables.items() if path.is_file()]  # not of what is made from another's: -rounded
    entries = [name for name in (*found["settings"]["models"], *found["settings"]["predictions"]) if name in by_mae]
    baselines = [name for name in kept if is_baseline(name)]
    shown = [name for name in entries if name in kept] or baselines[:BROWSED]
    beside = baselines[:1] if entries else []
    frames = {name: parquet_of(tables[name]) for name in (*shown, *beside)}
    answers = {name: align(examples, frame, name) for name, frame in frames.items()}
    own = _chosen(found, entries)
    models = found["settings"]["models"]
    browsed = island(
        examples, frames, {name: answers[name] for name in shown}, shown, scale,
        prompt_of=next(iter(models), None), groups=_groups(examples),
    )  # fmt: skip
    browsed["fallback"] = found["fallback"]
    names = [f"comparison.{kind}" for kind in ("json", "csv", "tex")]
    names += [f"{name}.csv" for name in ("cold_start", "pairs", "slices")] + ["test_examples.parquet"]
    return write_page(
        folder,
        [*(folder / name for name in names), *sorted(folder.glob("predictions/*"))],
        _facts(found),
        headline=_headline(found, own),
        warnings=found["warnings"],
        findings=_findings(found, own),
        fallback=found["fallback"],
        rounds=found["settings"]["rounds"],
        rows=_main(found),
        study={
            "columns": [(head, order) for head, order, _ in _further(lines).values()],
            "pairs": _pairs(found, own),
            "pair_count": len(found["pairs"]),
            "least_p": len(found["pairs"]) * 2 / (found["settings"]["rounds"] + 1),  # docs/evaluation.md, Pairs
            "decoding": _decodings(found),
            "slices": _slices(found, own),
            "cold": _cold(found),
            "cold_rows": found["rows"]["cold_start"],
            "settings": found["settings"],
            "calibration": _calibration(found),
            "probes": _probes(found),
            "probed": {name: PROBES.get(name, "") for lines in found["probes"].values() for name in _names(lines)},
            "groups": browsed["groups"],
            "written": any(said["text"] for example in browsed["examples"] for said in example["given"].values()),
        },
        curves=[],
        samples=[],
        pictures=pictures(
            examples,
            {name: answers[name] for name in shown},
            scale,
            {name: answers[name] for name in beside},
        ),
        island=browsed,
        shown=len(browsed["examples"]),
        total=examples.height,
        settings=[
            (title, json.dumps(part, indent=2, ensure_ascii=False))
            for title, part in (
                ("Settings of the comparison", found["settings"]),
                ("Settings of the baselines, where they are not the usual ones", found["baseline_settings"]),
                ("Versions", found["versions"]),
            )
            if part
        ],
    )


def _read(path: Path) -> dict[str, Any]:
    found = json_of(path) or {}
    wrong = next((key for key, kind in _HOLDS.items() if not isinstance(found.get(key), kind)), None)
    for key, names in _KEYS.items() if wrong is None else ():
        lines = found[key] if isinstance(found[key], list) else [found[key]]
        if not all(isinstance(line, dict) and set(names) <= line.keys() for line in lines):
            wrong = key
    if wrong is None and not found["comparison"]:
        wrong = "comparison"
    if wrong is not None:
        raise UserError(f"{path}: its {wrong!r} is not what `reczero compare` writes; run the comparison again")
    return found


# What came of it ----------------------------------------------------------------------------------------------------


def _chosen(found: Mapping[str, Any], entries: Iterable[str]) -> list[str]:
    """Of each entry of ours the decoding that validation rows chose for MAE, best first: test rows choose none."""
    mae = {row["model"]: row["mae"] for row in found["comparison"]}
    own = [found["decoding"][name]["best"]["mae"] if name in found["decoding"] else name for name in entries]
    return sorted((name for name in own if name in mae), key=lambda name: mae[name])


def _headline(found: Mapping[str, Any], own: Sequence[str]) -> str:
    """One sentence on the best of ours against the best baseline; true whatever the figures are."""
    rows = {row["model"]: row for row in found["comparison"]}
    best = _best_baseline(found)
    if not own:
        return f"The best baseline, {best}, errs by {rows[best]['mae']:.3f} rating points on average."
    said = f"{own[0]} errs by {rows[own[0]]['mae']:.3f} rating points on average, "
    said += f"the best baseline ({best}) by {rows[best]['mae']:.3f}"
    pair = next((pair for pair in found["pairs"] if (pair["model"], pair["against"]) == (own[0], best)), None)
    if pair is None or pair["mae_low"] is None:
        return f"{said}."
    if pair["mae_low"] <= 0 <= pair["mae_high"]:
        return f"{said}: no clear difference."
    return f"{said}: {abs(pair['mae']):.3f} {'less' if pair['mae'] < 0 else 'more'}."


def _best_baseline(found: Mapping[str, Any]) -> str:
    return min((row for row in found["comparison"] if is_baseline(row["model"])), key=lambda row: row["mae"])["model"]


def _findings(found: Mapping[str, Any], own: Sequence[str]) -> list[str]:
    rows = {row["model"]: row for row in found["comparison"]}
    said = [f"{sentence}." for sentence in summary({**found, "probes": {}})]  # these have a section of their own
    return said + [
        f"{name}: {percent(rows[name]['parse_rate'], 1)} of its answers had a valid form; "
        f"its most frequent answer makes {percent(rows[name]['mode_share'])} of all."
        for name in own
    ]


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings, scale = found["settings"], Scale(**found["scale"])
    facts = [
        ("data", found["data"].get("name")),
        ("fingerprint", str(found["data"].get("fingerprint"))[:12]),
        ("rows of the main table", f"{found['rows']['main']:,}"),
        ("cold starts", f"{found['rows']['cold_start']:,}"),
        ("scale", f"{scale.text(scale.min)} to {scale.text(scale.max)} by {scale.text(scale.step)}"),
        ("bootstrap rounds", f"{settings['rounds']:,}"),
        ("seed", settings["seed"]),
        ("command", found.get("command")),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _further(lines: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str, str]]:
    """Those of `_FURTHER` that any line has."""
    lines = list(lines)
    return {key: kind for key, kind in _FURTHER.items() if any(line.get(key) is not None for line in lines)}


def _more(line: Mapping[str, Any], further: Mapping[str, tuple[str, str, str]]) -> list[Cell]:
    cells = []
    for key, (_, _, form) in further.items():
        value = line.get(key)
        if key == "seconds" and value is not None and value < 0.0005:
            cells.append(Cell("< 0.001", value))
        else:
            cells.append(share(value, 0) if form == "%" else cell(value, form))
    return cells


def _main(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the main table; those that validation chose are marked."""
    marks: dict[str, str] = {}
    for decoding in found["decoding"].values():
        for figure, name in decoding["best"].items():
            marks[name] = f"{marks[name]}, {figure.upper()}" if name in marks else f"chosen for {figure.upper()}"
    further = _further(found["comparison"])
    return [
        row | {"more": _more(row, further), "mark": marks.get(row["model"], "")}
        for row in main_rows(found["comparison"])
    ]


def _cold(found: Mapping[str, Any]) -> Table | None:
    lines = sorted(found["cold_start"], key=lambda line: line["mae"])
    if not lines:
        return None
    further = _further(lines)
    columns = [("Model", UP), ("MAE", UP), ("RMSE", UP), ("Answered", DOWN), ("Most frequent", UP)]
    rows = [
        (line["model"], not is_baseline(line["model"]), [
            _figure(line, "mae"), _figure(line, "rmse"), share(line["parse_rate"]), share(line["mode_share"], 0),
            *_more(line, further),
        ])
        for line in lines
    ]  # fmt: skip
    return Table([*columns, *((head, order) for head, order, _ in further.values())], rows, by=1)


def _figure(line: Mapping[str, Any], name: str, form: str = "{:.3f}") -> Cell:
    return cell(line[name], form, line.get(f"{name}_low"), line.get(f"{name}_high"))


def _pairs(found: Mapping[str, Any], own: Sequence[str]) -> list[tuple[str, Table]]:
    """(model, against each opponent, the strongest first); the best of ours first, then those chosen, then the rest."""
    columns = [("Against", UP), ("Difference in MAE", DOWN), ("p", UP), ("p, Holm", UP)]
    columns += [("Difference in RMSE", DOWN), ("p", UP), ("p, Holm", UP), ("Effect", DOWN)]
    models = _names(found["pairs"])
    models.sort(key=lambda name: own.index(name) if name in own else len(own))
    tables = []
    for model in models:
        lines = sorted((p for p in found["pairs"] if p["model"] == model), key=lambda pair: -pair["mae"])
        rows = [
            (pair["against"], not is_baseline(pair["against"]), [
                _figure(pair, "mae", "{:+.3f}"), _p(pair["p_mae"]), _p(pair["p_mae_holm"]),
                _figure(pair, "rmse", "{:+.3f}"), _p(pair["p_rmse"]), _p(pair["p_rmse_holm"]),
                cell(pair["effect"], "{:+.2f}"),
            ])
            for pair in lines
        ]  # fmt: skip
        tables.append((model, Table(columns, rows, by=1)))
    return tables


def _p(value: float | None) -> Cell:
    return cell(value, "{:.3f}" if value is None or value >= 0.001 else "{:.4f}")


def _decodings(found: Mapping[str, Any]) -> list[tuple[str, int, Table]]:
    """(model, validation rows, its ways of decoding)."""
    columns = [("Decoding", UP), ("MAE", UP), ("RMSE", UP), ("Chosen for", DOWN)]
    tables = []
    for name, decoding in found["decoding"].items():
        ways, best = decoding["validation"], decoding["best"]
        rows = [
            (way, bool(chosen), [
                cell(ways[way]["mae"]), cell(ways[way]["rmse"]),
                Cell(", ".join(figure.upper() for figure in chosen), len(chosen)),
            ])
            for way in sorted(ways, key=lambda way: ways[way]["mae"])
            if (chosen := [figure for figure in ("mae", "rmse") if best[figure] == way]) is not None
        ]  # fmt: skip
        tables.append((name, decoding["rows"], Table(columns, rows, by=1)))
    return tables


def _slices(found: Mapping[str, Any], own: Sequence[str]) -> list[dict[str, Any]]:
    """A picture and its numbers for every kind of slice: ours beside the best baseline."""
    mae = {row["model"]: row["mae"] for row in found["comparison"]}
    wanted = [*own[: MOST_SERIES - 1], _best_baseline(found)]
    if not own:
        boosted = sorted((name for name in mae if name.startswith("boosting")), key=lambda name: mae[name])
        wanted += ["additive-rounded", *boosted[:1]]
    names = [name for name in dict.fromkeys(wanted) if name in mae]
    panels = []
    for kind in dict.fromkeys(line["slice"] for line in found["slices"]):
        lines = {(line["group"], line["model"]): line for line in found["slices"] if line["slice"] == kind}
        groups = [group for group in dict.fromkeys(group for group, _ in lines) if (group, names[0]) in lines]
        rows = {group: lines[group, names[0]]["rows"] for group in groups}
        largest = sorted(groups, key=lambda group: -rows[group])[:MOST_GROUPS]
        drawn = [group for group in groups if group in largest]
        series = {
            name: [[lines[group, name][key] for key in ("mae", "mae_low", "mae_high")] for group in drawn]
            for name in names
        }
        head = kind[:1].upper() + kind[1:]
        columns = [(head, UP), ("Rows", DOWN), *((name, UP) for name in names)]
        figures = [
            (group, False, [cell(rows[group], "{:,}"), *(_figure(lines[group, name], "mae") for name in names)])
            for group in groups
        ]
        note = f"The {MOST_GROUPS} groups with the most rows, of {len(groups)}." if len(drawn) < len(groups) else ""
        svg = Markup(charts.by_group(kind, drawn, series))
        panels.append({"title": head, "svg": svg, "note": note, "table": Table(columns, figures)})
    return panels


def _calibration(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    error = {row["model"]: row.get("calibration_error") for row in found["comparison"]}
    panels = []
    for name, curve in found["calibration"].items():
        off = f"Calibration error {error[name]:.3f}. " if error.get(name) is not None else ""
        svg = Markup(charts.reliability(name, curve["forecast"], curve["observed"], curve["count"]))
        panels.append({"title": name, "svg": svg, "note": f"{off}{sum(curve['count']):,} forecasts."})
    return panels


def _probes(found: Mapping[str, Any]) -> list[tuple[str, int, Table]]:
    """(model, rows, the probes in the order in which they were made)."""
    columns = [("Probe", UP), ("Moved", DOWN), ("Mean moved", DOWN), ("Changed", DOWN)]
    columns += [("MAE", UP), ("Change in MAE", DOWN), ("p", UP)]
    tables = []
    for name, lines in found["probes"].items():
        rows = [
            (line["probe"], False, [
                _figure(line, "moved"), cell(line["moved_expected"]), share(line["changed"], 0), cell(line["mae"]),
                _figure(line, "mae_change", "{:+.3f}"), _p(line["p"]),
            ])
            for line in lines
        ]  # fmt: skip
        tables.append((name, lines[0]["rows"] if lines else 0, Table(columns, rows)))
    return tables


def _names(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """The models of pairs, or the probes, each once, in their order."""
    return list(dict.fromkeys(line.get("model", line.get("probe")) for line in lines))


def _groups(examples: pl.DataFrame) -> list[tuple[str, str, Any]]:
    """The slices that the examples can be chosen by."""
    if examples.is_empty():
        return []
    lists = examples.select("item_id", "categories").unique("item_id", maintain_order=True)
    return [group for group in slices.groups(examples, lists) if group[0] in _FILTERS]
