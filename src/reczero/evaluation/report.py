"""One HTML file that tells what was run and what came of it. Offline, self-contained, safe with hostile text."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from markupsafe import Markup

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
from reczero.evaluation.page import island, json_of, main_rows, parquet_of, percent, pictures, write_page
from reczero.evaluation.study_report import write_study_report
from reczero.reasoning.scale import Scale

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


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run or of a comparison from what lies there, and return its path.

    Needs `comparison.json`, or `recipe.yaml` or `run.json` of a run; everything else may be missing, and the report
    says so. Raises UserError for anything unreadable.
    """
    if (folder / "comparison.json").is_file():
        return write_study_report(folder)
    run = folder
    recipe, info = _yaml(run / "recipe.yaml"), json_of(run / "run.json")
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
    files = ["recipe.yaml", "test_examples.parquet", "comparison.csv"]
    settings = [("Recipe, as resolved", (run / "recipe.yaml").read_text(encoding="utf-8"))] if recipe else []
    if info:
        settings.append(("Run: versions, data, seconds", json.dumps(info, indent=2, ensure_ascii=False)))
    return write_page(
        run,
        [*(run / name for name in files), *sorted(run.glob("predictions/*"))],
        _facts(recipe, info),
        study=None,
        warnings=[],
        headline=_headline(table, trained),
        findings=_findings(run, examples, table, answers, trained),
        fallback=fallback_of(answers) if FALLBACK in answers else None,
        rounds=metrics.ROUNDS,
        rows=main_rows(table.to_dicts()),
        curves=_curves(run, info),
        pictures=pictures(examples, {name: answers[name] for name in reversed(ours)}, scale),
        island=(browsed := island(examples, frames, answers, ours, scale)),
        shown=len(browsed["examples"]),
        total=examples.height,
        samples=_samples(run / "completions.parquet"),
        settings=settings,
    )


# What was run -------------------------------------------------------------------------------------------------------


def _facts(recipe: Mapping[str, Any], info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a reader wants to know first; what a run does not say is left out."""
    candidates = [
        ("method", recipe.get("method")),
        ("model", _setting(recipe, "model.name")),
        ("data", _setting(recipe, "data.dataset")),
        ("step kept", info.get("best_step")),
        ("time", _duration(info.get("seconds"))),
    ]
    candidates += [(label, _setting(recipe, path)) for path, label in _KEY_SETTINGS.items()]
    versions = info.get("versions")
    if isinstance(versions, dict):
        candidates.append(("versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
    return [(name, _plain(value)) for name, value in candidates if value is not None]


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
    change = f", {percent(abs(now - before) / before)} {'less' if now < before else 'more'}" if before else ""
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
        f"{percent(row['parse_rate'], 1)} of its answers had a valid form; "
        f"its most frequent answer makes {percent(row['mode_share'])} of all."
    ]


def _comparison(path: Path) -> pl.DataFrame:
    if not path.is_file():
        return pl.DataFrame(schema={"model": pl.String, "mae": pl.Float64})
    try:
        return pl.read_csv(path)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: not a readable CSV; finish the run again to rewrite it") from error


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


# What it said -------------------------------------------------------------------------------------------------------


def _samples(path: Path) -> list[dict[str, Any]]:
    """A few answers sampled in training, from the first step to the last: how the policy's words changed."""
    if not path.is_file():
        return []
    frame = parquet_of(path)
    if frame.is_empty() or not {"step", "text"} <= set(frame.columns):
        return []
    order = ["stage", "step"] if "stage" in frame.columns else ["step"]
    firsts = frame.group_by(order, maintain_order=True).first()
    chosen = np.unique(np.linspace(0, firsts.height - 1, min(firsts.height, 5)).round().astype(int))
    fields = ("step", "rating", "prediction", "reward", "text")
    return [{key: row.get(key) for key in fields} for row in firsts[chosen.tolist()].iter_rows(named=True)]


# Reading ------------------------------------------------------------------------------------------------------------


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
