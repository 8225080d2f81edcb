"""A run folder as training and evaluation leave it, made up but lifelike."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from reczero.evaluation.compare import finish_comparison
from reczero.reasoning.scale import Scale

SCALE = Scale(1.0, 5.0, 1.0)
RECIPE = """\
method: reczero
data: {dataset: ml-100k, history: 6}
model: {name: smollm2-135m, train_layers: 15}
rollout: {guided: true, group_size: 8, temperature: 1.0}
training: {steps: 60, groups_per_step: 4, learning_rate: 2.0e-05, seed: 0}
evaluation: {test_examples: 200}
"""
FILMS = (
    "Fargo (1996)",
    "Contact (1997)",
    "Kolya (1996)",
    "Toy Story (1995)",
    "L.A. Confidential (1997)",
    "Clueless (1995)",
)


def synthetic_examples(rows: int, seed: int = 0) -> pl.DataFrame:
    """Users and items with tastes of their own; ratings on 1..5."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, max(2, rows // 5), rows), rng.integers(0, 30, rows)
    user_avg = 3.5 + 0.6 * np.sin(user * 12.9)
    item_avg = 3.5 + 0.6 * np.sin(item * 78.2)
    rating = np.clip(np.round(user_avg + item_avg - 3.5 + rng.normal(0, 0.9, rows)), 1, 5)
    return pl.DataFrame(
        {
            "example_id": [f"e{i}" for i in range(rows)],
            "user_id": user.astype(str),
            "item_id": item.astype(str),
            "rating": rating,
            "timestamp": 890_000_000 + 4_000 * np.arange(rows),
            "user_avg": user_avg,
            "item_avg": item_avg,
            "user_count": rng.integers(1, 80, rows),
            "item_count": rng.integers(1, 300, rows),
            "prompt": [
                f"You predict ratings.\n\nTarget: film {i}\n" + "- an earlier film, rated 4\n" * 10 for i in range(rows)
            ],
            "title": [f"{FILMS[i % len(FILMS)]} no. {i}" for i in range(rows)],
        },
        schema_overrides={"example_id": pl.String, "user_avg": pl.Float64, "item_avg": pl.Float64},
    )


def synthetic_predictions(examples: pl.DataFrame, values: list[float | None], name: str, text: str) -> pl.DataFrame:
    sections = {
        "analyze_user": f"Likes quiet dramas and dislikes long action scenes. {text}",
        "analyze_item": f"[pos] praised for its dialogue [neg] slow start. {text}",
        "match": f"The dialogue fits, the pace may not. {text}",
    }
    parsed = [value is not None for value in values]
    return pl.DataFrame(
        {
            "example_id": examples["example_id"],
            "prediction": pl.Series(values, dtype=pl.Float64),
            "rating": examples["rating"],
            "parsed": pl.Series(parsed, dtype=pl.Boolean),
            "reasoning": pl.Series(
                [sections if good else dict.fromkeys(sections) for good in parsed],
                dtype=pl.Struct(dict.fromkeys(sections, pl.String)),
            ),
            "text": pl.Series([f"<analyze user>{text} and so on" for _ in values], dtype=pl.String),
        }
    ).with_columns(model=pl.lit(name), decoding=pl.lit("greedy"))


def build_run(folder: Path, rows: int = 200, failures: int = 3, text: str = "", finish: bool = True) -> Path:
    """Write a run folder without its report; `text` is woven into everything that comes from data."""
    rng = np.random.default_rng(1)
    run = folder / "synthetic"
    (run / "predictions").mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE + (f"note: {json.dumps(text)}\n" if text else ""), encoding="utf-8")
    info = {
        "method": "reczero",
        "versions": {"reczero": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"},
        "data": {"name": f"ml-100k {text}".strip(), "fingerprint": "9f2c" * 16},
        "scale": SCALE.to_dict(),
        "seconds": {"prepare": 3.1, "train": 521.7, "evaluate": 64.0},
        "best_step": 40,
    }
    (run / "run.json").write_text(json.dumps(info), encoding="utf-8")
    lines = []
    for step in range(1, 61):
        reward = 0.1 + 0.95 * (1 - np.exp(-step / 18)) + rng.normal(0, 0.07)
        lines.append({"step": step, "reward": reward, "reward_std": 0.35 - step / 400, "loss": 0.01})
        if step % 10 == 0:
            lines.append({"step": step, "validation_mae": 1.9 - step / 40 + (step > 40) * (step - 35) / 30})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    steps = list(range(1, 61, 10))
    completions = pl.DataFrame(
        {"step": steps, "example_id": ["t1"] * 6, "rating": [4.0] * 6, "prediction": [1.0] * 3 + [4.0] * 3}
    )
    completions = completions.with_columns(
        reward=pl.lit(0.9), text=pl.lit(f"<analyze user>likes dramas {text}</analyze user>")
    )
    completions.write_parquet(run / "completions.parquet")

    examples = synthetic_examples(rows)
    if text:
        examples = examples.with_columns(pl.col("title", "prompt", "user_id", "example_id") + " " + text)
    examples.write_parquet(run / "test_examples.parquet")
    guess = np.clip(np.round(examples["user_avg"].to_numpy() + rng.normal(0, 0.4, rows)), 1, 5)
    trained = [None if i < failures else float(value) for i, value in enumerate(guess)]
    untrained = [float(value) for value in rng.choice([1, 1, 1, 1, 1, 2, 5], rows)]
    for name, values in (("untrained", untrained), ("reczero", trained)):
        synthetic_predictions(examples, values, name, text).write_parquet(run / "predictions" / f"{name}.parquet")
    if finish and rows:
        finish_comparison(run, synthetic_examples(800, seed=2), SCALE)
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    return lambda **options: build_run(tmp_path, **options)


@pytest.fixture(scope="session")
def examples() -> pl.DataFrame:
    return synthetic_examples(200)


@pytest.fixture(scope="session")
def train() -> pl.DataFrame:
    return synthetic_examples(800, seed=2)
