"""What runs beside verl, in its environment: the reward of an answer, and which checkpoint is the best by validation.

`bundle` (in `reward.py`) writes this and all that it imports from us into one file; nothing here may need more than
Python itself.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reczero.evaluation.choice import rank
from reczero.reasoning.parser import parse
from reczero.reasoning.reward import RewardName, score
from reczero.reasoning.template import Template


@dataclass(frozen=True)
class Scorer:
    """fallback: the rating that stands for a malformed answer in the errors (the median of the training ratings)."""

    template: Template
    reward: RewardName
    fallback: float

    def score(self, text: Any, truth: Any) -> dict[str, float | None]:
        """What an answer is worth. Never raises; always the same keys, numbers or None.

        score: the reward that is trained on; abs_err, sq_err: |ŷ − y| and its square, a malformed answer's by the
        fallback, as the local comparison counts it; parsed: 1 or 0. An exception here would make verl train on partial
        groups without a word, so a truth that is no number earns 0 and has no error.
        """
        try:
            true = float(truth)
        except (TypeError, ValueError, OverflowError):
            true = math.nan
        if not math.isfinite(true):
            return {"score": 0.0, "abs_err": None, "sq_err": None, "parsed": 0.0}
        answer = parse(text if isinstance(text, str) else "", self.template)
        error = abs((self.fallback if answer.rating is None else answer.rating) - true)
        total = score(answer, true, self.template, self.reward).total
        return {"score": total, "abs_err": error, "sq_err": error * error, "parsed": float(answer.well_formed)}


def validations(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> mae, rmse, parse_rate and rows of verl's dumps of validation answers (`STEP.jsonl`) in a folder.

    A damaged one is told on stderr, and left out.
    """
    found = {}
    for path in folder.glob("*.jsonl"):
        if not path.stem.isdigit():
            continue
        try:
            lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
            rows = [line for line in lines if line.get("abs_err") is not None]
        except (ValueError, AttributeError) as error:
            print(f"{path}: damaged, left out ({error})", file=sys.stderr)
            continue
        if rows:
            n = len(rows)
            found[int(path.stem)] = {
                "mae": sum(row["abs_err"] for row in rows) / n,
                "rmse": math.sqrt(sum(row["sq_err"] for row in rows) / n),
                "parse_rate": sum(row["parsed"] for row in rows) / n,
                "rows": n,
            }
    return dict(sorted(found.items()))


def best(found: Mapping[int, Mapping[str, float]], checkpoints: Path) -> int | None:
    """The step, of those whose checkpoint stands in a folder as verl writes it, whose answers are the best.

    Only whole validations count: those with as many rows as any has.
    """
    whole = max((validation["rows"] for validation in found.values()), default=0)
    there = [
        step
        for step, validation in found.items()
        if validation["rows"] == whole and (checkpoints / f"global_step_{step}" / "actor").is_dir()
    ]
    return min(there, key=lambda step: rank(found[step]), default=None)


def main(arguments: list[str]) -> int:
    """`reward.py VALIDATION CHECKPOINTS`: a table of the validations on stderr, the best checkpoint on stdout."""
    if len(arguments) != 2:
        print("usage: python reward.py VALIDATION CHECKPOINTS", file=sys.stderr)
        return 2
    folder, checkpoints = map(Path, arguments)
    found = validations(folder)
    chosen = best(found, checkpoints)
    print("the best is well-formed in 95 % of the rows, or nearest to that; then the MAE decides", file=sys.stderr)
    print("  step    MAE   RMSE  well-formed  rows", file=sys.stderr)
    for step, v in found.items():
        line = f"{step:6d}  {v['mae']:.3f}  {v['rmse']:.3f}  {v['parse_rate']:11.1%}  {v['rows']:4d}"
        print(line + ("  <- best with a checkpoint" if step == chosen else ""), file=sys.stderr)
    if chosen is None:
        print(f"error: no validation in {folder} has a checkpoint in {checkpoints}", file=sys.stderr)
        return 2
    if 0 in found and rank(found[0]) < rank(found[chosen]):
        print("the model that training began with was better than all checkpoints", file=sys.stderr)
    print(checkpoints / f"global_step_{chosen}")
    return 0
