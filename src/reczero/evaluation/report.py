"""One HTML file that tells what was run and what came of it. Offline, self-contained, safe with hostile text."""

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reczero import __version__
from reczero.errors import UserError
from reczero.evaluation import charts, metrics
from reczero.evaluation.baselines import FALLBACK, is_baseline
from reczero.evaluation.compare import (
    UNTRAINED,
    against,
    align,
    compare_stages,
    fallback_of,
    own_models,
    read_examples,
    read_predictions,
)
from reczero.files import atomic_file, sha256
from reczero.reasoning.scale import Scale

MOST_EXAMPLES = 1_000  # each carries its prompt: more would make a page that no phone opens
LONG_FACT = 44  # characters
GOOD, BAD = 0.125, 0.375  # of the scale's width: 0.5 and 1.5 points on a scale from 1 to 5
_SECTIONS = {"analyze_user": "The user", "analyze_item": "The item", "match": "How they fit", "think": "Thoughts"}
_KEY_SETTINGS = {  # shown at the top when a recipe has them; all others stand at the foot
    "training.steps": "steps at most",
    "training.minutes": "minutes at most",
    "training.groups_per_step": "prompts a step",
    "rollout.group_size": "answers a prompt",
    "training.learning_rate": "learning rate",
    "training.reward": "reward",
    "model.lora.rank": "LoRA rank",
    "model.train_layers": "upper layers trained",
    "rollout.guided": "guided by the template",
    "rollout.template.variant": "template",
    "rollout.temperature": "temperature",
    "rollout.template.history": "history shown",
    "training.seed": "seed",
}


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder from what lies there, and return its path.

    Needs the folder of a run (`recipe.yaml` or `run.json`); everything else may be missing, and the report says so.
    Raises UserError for anything unreadable.
    """
    recipe, info = _yaml(run / "recipe.yaml"), _json(run / "run.json")
    if recipe is None and info is None:
        raise UserError(f"{run}: not the folder of a run (no recipe.yaml, no run.json); give one such as runs/demo")
    recipe, info = recipe or {}, info or {}
    examples = read_examples(run) if (run / "test_examples.parquet").is_file() else pl.DataFrame()
    frames = read_predictions(run)
    answers = {name: align(examples, frame, name) for name, frame in frames.items()} if examples.height else {}
    table = _comparison(run / "comparison.csv")
    ours = own_models(answers, recipe.get("method"))
    trained = [name for name in ours if name != UNTRAINED]
    scale = Scale(**info["scale"]) if isinstance(info.get("scale"), dict) else None
    page = (
        _environment()
        .get_template("report.html")
        .render(
            run=run.resolve().name,
            facts=_facts(recipe, info),
            headline=_headline(table, trained),
            findings=_findings(run, examples, table, answers, trained),
            fallback=fallback_of(answers) if FALLBACK in answers else None,
            rounds=metrics.ROUNDS,
            rows=_rows(table),
            curves=_curves(run, info),
            pictures=_pictures(examples, {name: answers[name] for name in reversed(ours)}, scale),
            island=(island := _island(examples, frames, answers, ours, scale)),
            shown=len(island["examples"]),
            total=examples.height,
            samples=_samples(run / "completions.parquet"),
            settings=(run / "recipe.yaml").read_text(encoding="utf-8") if recipe else "",
            info=json.dumps(info, indent=2, ensure_ascii=False) if info else "",
            hashes=_hashes(run),
            version=__version__,
            long_fact=LONG_FACT,
            **_assets(),
        )
    )
    target = run / "report.html"
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


# What was run -------------------------------------------------------------------------------------------------------


def _facts(recipe: Mapping[str, Any], info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a reader wants to know first; what a run does not say is left out."""
    candidates = [
        ("method", recipe.get("method")),
        ("model", _setting(recipe, "model.name")),
        ("data", _setting(recipe, "data.dataset")),
        ("best step", info.get("best_step")),
        ("time", _duration(info.get("seconds"))),
    ]
    candidates += [(label, _setting(recipe, path)) for path, label in _KEY_SETTINGS.items()]
    versions = info.get("versions")
    if isinstance(versions, dict):
        candidates.append(("versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
    facts = [(name, _plain(value)) for name, value in candidates if value is not None]
    return sorted(facts, key=lambda fact: len(fact[1]) > LONG_FACT)  # the long ones take a line each, at the end


def _setting(recipe: Mapping[str, Any], path: str) -> Any:
    """The value at `section.key`, None where there is none."""
    value: Any = recipe
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _plain(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _duration(seconds: Any) -> str | None:
    """Seconds, or seconds by stage, in words."""
    if isinstance(seconds, dict):
        stages = {name: value for name, value in seconds.items() if isinstance(value, int | float)}
        if not stages:
            return None
        total = stages.get("total", sum(stages.values()))
        parts = ", ".join(f"{name} {_clock(value)}" for name, value in stages.items() if name != "total")
        return f"{_clock(total)} ({parts})" if parts else _clock(total)
    return _clock(seconds) if isinstance(seconds, int | float) else None


def _clock(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


# What came of it ----------------------------------------------------------------------------------------------------


def _headline(table: pl.DataFrame, trained: list[str]) -> str:
    """One sentence that holds whatever the figures are."""
    by_name = {row["model"]: row for row in table.iter_rows(named=True)}
    name = next((name for name in trained if name in by_name), None)
    if name is None:
        return "No trained model was compared in this run."
    now = by_name[name]["mae"]
    if UNTRAINED not in by_name:
        return f"{name} errs by {now:.2f} rating points on average."
    before = by_name[UNTRAINED]["mae"]
    if round(before, 2) == round(now, 2):
        return f"Training left the average error where it was: {now:.2f} rating points."
    change = f", {_percent(abs(now - before) / before)} {'less' if now < before else 'more'}" if before else ""
    return f"Training took the average error from {before:.2f} to {now:.2f} rating points{change}."


def _findings(
    run: Path, examples: pl.DataFrame, table: pl.DataFrame, answers: Mapping[str, np.ndarray], trained: list[str]
) -> list[str]:
    """Sentences on the trained model against what it was before, the best constant and the best baseline."""
    rows = {row["model"]: row for row in table.iter_rows(named=True)}
    name = next((name for name in trained if name in rows), None)
    if name is None:
        return []
    found = []
    if FALLBACK in answers:
        found += compare_stages(run)
        baselines = sorted(
            (row for row in rows.values() if row["model"] in answers and is_baseline(row["model"])),
            key=lambda row: (row["mae"], row["model"] != FALLBACK),  # of equals, the median is the plainer name
        )
        constants = [row for row in baselines if row["mode_share"] == 1][:1]
        opponents = [(row["model"], f"the best constant ({row['model']})") for row in constants]
        opponents += [
            (row["model"], f"the best baseline ({row['model']})") for row in baselines[:1] if row not in constants
        ]
        for opponent, called in opponents:
            pair, fallback = (answers[name], answers[opponent]), fallback_of(answers)
            found.append(against(name, called, "test", examples, pair, fallback))
    row = rows[name]
    return [f"{sentence}." for sentence in found] + [
        f"{_percent(row['parse_rate'], 1)} of its answers had a valid form; "
        f"its most frequent answer makes {_percent(row['mode_share'])} of all."
    ]


def _percent(share: float, places: int = 0) -> str:
    return f"{100 * share:.{places}f}\u00a0%"


def _comparison(path: Path) -> pl.DataFrame:
    if not path.is_file():
        return pl.DataFrame(schema={"model": pl.String, "mae": pl.Float64})
    try:
        return pl.read_csv(path)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: not a readable CSV; finish the run again to rewrite it") from error


def _rows(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows of the comparison, best MAE first, each with its whiskers' places in percent of a common axis.

    One very bad model (the untrained one, as a rule) would squeeze all others together, so the axis ends at three times
    the reach of the better half and what lies beyond is an arrow at its edge.
    """
    rows = table.sort("mae", maintain_order=True).to_dicts()
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


def _curves(run: Path, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reward (without one: loss) and validation error of each stage, as far as metrics.jsonl has points for them."""
    lines = [line for line in _json_lines(run / "metrics.jsonl") if _number(line.get("step"))]
    stages = list(dict.fromkeys(line.get("stage") for line in lines))
    curves = []
    for stage in stages:
        own = {key: [line for line in lines if line.get("stage") == stage and _number(line.get(key))] for key in _DRAWN}
        suffix = f", {stage}" if len(stages) > 1 else ""
        drawn = "reward" if own["reward"] else "loss"
        if points := list({line["step"]: line for line in own[drawn]}.values()):
            spread = [p.get("reward_std") if _number(p.get("reward_std")) else None for p in points]
            svg = charts.step_curve(drawn, [p["step"] for p in points], [p[drawn] for p in points], spread)
            note = {
                "reward": "Mean reward of the sampled answers of each step.",
                "loss": "Mean loss of the answers' tokens in each step, in nats.",
            }[drawn]
            curves.append({"title": f"{drawn.capitalize()}{suffix}", "svg": Markup(svg), "note": note})
        errors = {line["step"]: line["validation_mae"] for line in own["validation_mae"]}
        if errors:
            steps = sorted(errors)
            best = (info.get("stages") or {}).get(stage, {}).get("best_step", info.get("best_step"))
            if best not in errors:
                best = min(steps, key=lambda step: errors[step])
            svg = charts.validation_curve(steps, [errors[step] for step in steps], best)
            note = "Greedy answers on validation rows. The marked step was kept; test rows had no say in it."
            curves.append({"title": f"Validation error{suffix}", "svg": Markup(svg), "note": note})
    return curves


_DRAWN = ("reward", "loss", "validation_mae")


def _pictures(examples: pl.DataFrame, answers: dict[str, np.ndarray], scale: Scale | None) -> list[dict[str, Any]]:
    if examples.is_empty() or not answers:
        return []
    truth = examples["rating"].cast(pl.Float64).to_numpy()
    levels = charts.rating_levels(np.concatenate([truth, *answers.values()]), scale)
    note = "Rows by true and predicted rating, shaded by the share within each true rating; framed: right on."
    pictures = [
        {
            "title": name,
            "svg": Markup(charts.heat_map(html.escape(name), truth, given, levels, name != UNTRAINED)),
            "note": note,
        }
        for name, given in answers.items()
    ]
    svg = charts.histogram(truth, answers, levels)
    note = "A model that says one rating to everybody shows as a single tall bar."
    return [*pictures, {"title": "All ratings", "svg": Markup(svg), "note": note}]


# What it said -------------------------------------------------------------------------------------------------------


def _island(
    examples: pl.DataFrame,
    frames: Mapping[str, pl.DataFrame],
    answers: Mapping[str, np.ndarray],
    ours: list[str],
    scale: Scale | None,
) -> dict[str, Any]:
    """The browsable examples as plain data for the page's script; never markup."""
    truth = examples["rating"].cast(pl.Float64).to_numpy() if examples.height else np.zeros(0)
    levels = charts.rating_levels(np.concatenate([truth, *(answers[name] for name in ours)]), scale)
    width = float(levels[-1] - levels[0])
    island: dict[str, Any] = {
        "models": ours,
        "min": float(levels[0]),
        "max": float(levels[-1]),
        "good": GOOD * width,
        "bad": BAD * width,
        "fallback": fallback_of(answers) if FALLBACK in answers else None,
        "sections": _SECTIONS,
        "examples": [],
    }
    if examples.is_empty() or not ours:
        return island
    chosen = np.unique(np.linspace(0, examples.height - 1, min(examples.height, MOST_EXAMPLES)).round().astype(int))
    said = {name: {str(row["example_id"]): row for row in frames[name].iter_rows(named=True)} for name in ours}
    for index, example in zip(chosen, examples[chosen.tolist()].iter_rows(named=True), strict=True):
        given = {}
        for name in ours:
            row = said[name].get(str(example["example_id"]), {})
            value = answers[name][index]
            given[name] = {
                "rating": float(value) if np.isfinite(value) else None,
                "reasoning": {key: text for key, text in (row.get("reasoning") or {}).items() if text},
                "text": row.get("text"),
            }
        fields = ("user_id", "timestamp", "user_avg", "item_avg", "user_count", "item_count", "prompt")
        island["examples"].append(
            {key: example.get(key) for key in fields}
            | {
                "title": example.get("title") or example.get("item_id"),
                "truth": float(example["rating"]),
                "given": given,
            }
        )
    return _finite(island)


def _samples(path: Path) -> list[dict[str, Any]]:
    """A few answers sampled in training, from the first step to the last: how the policy's words changed."""
    if not path.is_file():
        return []
    frame = _parquet(path)
    if frame.is_empty() or not {"step", "text"} <= set(frame.columns):
        return []
    order = ["stage", "step"] if "stage" in frame.columns else ["step"]
    firsts = frame.group_by(order, maintain_order=True).first()
    chosen = np.unique(np.linspace(0, firsts.height - 1, min(firsts.height, 5)).round().astype(int))
    fields = ("step", "rating", "prediction", "reward", "text")
    return [{key: row.get(key) for key in fields} for row in firsts[chosen.tolist()].iter_rows(named=True)]


def _hashes(run: Path) -> list[tuple[str, str]]:
    """(file, SHA-256) of the data that the report rests on."""
    files = [
        run / "recipe.yaml",
        run / "test_examples.parquet",
        run / "comparison.csv",
        *sorted(run.glob("predictions/*")),
    ]
    return [(str(file.relative_to(run)), sha256(file)) for file in files if file.is_file()]


# Reading ------------------------------------------------------------------------------------------------------------


def _finite(value: Any) -> Any:
    """The same structure with None for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _yaml(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable recipe; restore it or run the training again") from error
    return content if isinstance(content, dict) else {}


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON; restore it or run the training again") from error
    return content if isinstance(content, dict) else {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: not valid JSON; remove the line and write the report again"
            ) from error
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file; remove it and write the report again") from error
