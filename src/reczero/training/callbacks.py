"""What happens beside the optimizer: metrics as JSON lines, completions as tables, validation, time limit, progress."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from transformers import TrainerCallback

from reczero.errors import UserError
from reczero.evaluation.choice import rank
from reczero.files import atomic_file, whole_lines

from .processes import Processes

# TRL's name of a logged quantity -> ours.
_NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "reward": "reward",
    "reward_std": "reward_std",
    "entropy": "entropy",
    "kl": "kl",
    "rating_kl": "rating_kl",
    "completions/mean_length": "completion_tokens",
    "rating_abs_error": "rating_abs_error",
    "well_formed": "well_formed",
    "rating_loss": "rating_loss",
}


IDLE = 10  # steps in a row without any gradient, after which none is expected


class Journal:
    """The lines of one stage in `metrics.jsonl` of a run. A resumed stage first forgets what lies after its checkpoint.

    writes: False in all processes but the main one, which only read.
    """

    def __init__(self, path: Path, stage: str = "grpo", writes: bool = True):
        self.path, self.stage, self.writes = path, stage, writes

    def write(self, **line: Any) -> None:
        if not self.writes:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, **line}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        return [line for line in self._all() if line.get("stage") == self.stage]

    def _all(self) -> list[dict[str, Any]]:
        try:
            return [dict(json.loads(line)) for line in whole_lines(self.path)]
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.path}: damaged ({error}); remove the broken line.") from error

    def forget_after(self, step: int) -> None:
        if not self.writes:
            return
        kept = [line for line in self._all() if line.get("stage") != self.stage or line["step"] <= step]
        with atomic_file(self.path) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")


@dataclass(frozen=True)
class Pace:
    """When to validate, and when to stop: after `minutes`, or `patience` validations without a better one.

    at_start: validate before the first step too; then a stage that never improves leaves the model as it was, unless
    its last step is kept whatever validation says (keep_last).
    """

    validation_steps: int
    minutes: float | None = None
    patience: int | None = None
    at_start: bool = False
    keep_last: bool = False


class Watch(TrainerCallback):
    """Writes the journal, validates, keeps the best, stops in time, or when nothing is learned any more.

    validate: () -> {"mae", "rmse", "parse_rate", "mode_share"} of greedy predictions on the validation rows.
    keep: called with the step when it is the best so far (`rank`), or whenever the last is kept.
    report: told every line of the journal.
    """

    def __init__(
        self,
        journal: Journal,
        validate: Callable[[], dict[str, float]],
        keep: Callable[[int, dict[str, float]], None],
        report: Callable[[dict[str, Any]], None],
        pace: Pace,
        processes: Processes,
    ):
        self.journal, self.validate, self.keep, self.report = journal, validate, keep, report
        self.pace, self.processes = pace, processes
        lines = journal.read()
        self.validated = [
            rank({key.removeprefix("validation_"): value for key, value in line.items()})
            for line in lines
            if "validation_mae" in line
        ]
        self.spent = max((line.get("training_seconds", 0.0) for line in lines), default=0.0)
        self.idle = 0  # latest steps in a row without any gradient
        for line in lines:
            self._count(line)
        self.skipped_groups: Callable[[], int] | None = None
        self._mark = 0.0

    def on_train_begin(self, args, state, control, **_):
        if self.pace.at_start and not self.validated:
            self._validate(state.global_step)
        self._mark = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **_):
        if not logs or "loss" not in logs:  # the summary at the end
            return
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self.spent += seconds
        line = {"step": state.global_step, **{ours: logs[name] for name, ours in _NAMES.items() if name in logs}}
        if self.skipped_groups:
            line["zero_advantage_groups"] = self.skipped_groups()
        line |= {"seconds": round(seconds, 2), "training_seconds": round(self.spent, 1)}
        self.journal.write(**line)
        self.report(line | {"stage": self.journal.stage, "steps": state.max_steps})
        self._count(line)
        pace = self.pace
        late = self._late() or self.stuck
        if late or state.global_step % pace.validation_steps == 0 or state.global_step == state.max_steps:
            self._validate(state.global_step)
            self._mark = time.perf_counter()
        control.should_training_stop |= late or self._no_longer_better()

    def over(self) -> bool:
        """Whether the stage was to stop where the journal ends."""
        return self._late() or self.stuck or self._no_longer_better()

    @property
    def stuck(self) -> bool:
        """Whether the answers of every group have come to be alike, and there is nothing left to learn from."""
        return self.idle >= IDLE

    def _count(self, line: dict[str, Any]) -> None:
        if "loss" in line:
            self.idle = self.idle + 1 if line.get("grad_norm") == 0 else 0

    def _late(self) -> bool:
        return self.pace.minutes is not None and self.processes.agree(self.spent >= 60 * self.pace.minutes)

    def _no_longer_better(self) -> bool:
        if self.pace.patience is None or not self.validated:
            return False
        return len(self.validated) - 1 - self.validated.index(min(self.validated)) >= self.pace.patience

    def _validate(self, step: int) -> None:
        metrics = self.validate()
        line = {"step": step, **{f"validation_{name}": value for name, value in metrics.items()}}
        found = rank(metrics)
        if self.pace.keep_last or not self.validated or found < min(self.validated):
            self.keep(step, metrics)
        self.validated.append(found)
        self.journal.write(**line)
        self.report(line | {"stage": self.journal.stage})


class Samples:
    """The answers sampled in training: a part a step while it runs, `completions.parquet` when a stage is done.

    A resumed run writes the same parts again.
    """

    def __init__(self, run: Path, stage: str = "grpo"):
        self.folder, self.table, self.stage = run / "completions" / stage, run / "completions.parquet", stage

    def write(self, step: int, rows: pl.DataFrame) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / f"{step:06d}.parquet") as path:
            rows.write_parquet(path)

    def finish(self, last_step: int) -> None:
        """Joins the parts of all steps up to `last_step`, after those of earlier stages, into one table."""
        paths = [path for path in sorted(self.folder.glob("*.parquet")) if int(path.stem) <= last_step]
        if not paths:
            return
        parts = [pl.read_parquet(path).with_columns(stage=pl.lit(self.stage)) for path in paths]
        if self.table.is_file():
            parts.insert(0, pl.read_parquet(self.table).filter(pl.col("stage") != self.stage))
        with atomic_file(self.table) as path:
            pl.concat(parts).write_parquet(path)
        shutil.rmtree(self.folder)

    def adopt(self, other: Path) -> None:
        """Takes the rows of this stage from another run's table."""
        table = other / "completions.parquet"
        if table.is_file():
            rows = pl.read_parquet(table).filter(pl.col("stage") == self.stage).drop("stage")
            for (step,), part in rows.group_by("step", maintain_order=True):
                self.write(int(step), part)
            self.finish(max(rows["step"], default=0))
