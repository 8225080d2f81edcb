"""What happens beside the optimizer: metrics as JSON lines, completions as tables, validation, time limit, progress."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from transformers import TrainerCallback

from reczero.files import atomic_file

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
    "completions/mean_length": "completion_tokens",
    "rating_abs_error": "rating_abs_error",
    "well_formed": "well_formed",
}


class Journal:
    """`metrics.jsonl` of a run. A resumed run first forgets what lies after its checkpoint.

    writes: False in all processes but the main one, which only read.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes

    def write(self, **line: Any) -> None:
        if not self.writes:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """The whole lines; one that a kill cut off is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text("utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def forget_after(self, step: int) -> None:
        if not self.writes:
            return
        kept = [line for line in self.read() if line["step"] <= step]
        with atomic_file(self.path) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")


class Watch(TrainerCallback):
    """Writes the journal, validates, keeps the best, stops in time.

    validate: () -> {"mae", "rmse", "parse_rate", "mode_share"} of greedy predictions on the validation rows.
    keep: called with the step when its MAE is the lowest so far, or as low with a lower RMSE. report: told every line of the journal.
    """

    def __init__(
        self,
        journal: Journal,
        validate: Callable[[], dict[str, float]],
        keep: Callable[[int, dict[str, float]], None],
        report: Callable[[dict[str, Any]], None],
        validation_steps: int,
        minutes: float | None,
        processes: Processes,
    ):
        self.journal, self.validate, self.keep, self.report = journal, validate, keep, report
        self.validation_steps, self.minutes, self.processes = validation_steps, minutes, processes
        lines = journal.read()
        self.validated = [
            (line["validation_mae"], line["validation_rmse"]) for line in lines if "validation_mae" in line
        ]  # of few rows many checkpoints have the same MAE: then the lower RMSE is better
        self.spent = max((line.get("training_seconds", 0.0) for line in lines), default=0.0)
        self.skipped_groups: Callable[[], int] = lambda: 0
        self._mark = 0.0

    def on_train_begin(self, args, state, control, **_):
        self._mark = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **_):
        if not logs or "reward" not in logs:  # TRL's summary at the end
            return
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self.spent += seconds
        line = {"step": state.global_step, **{ours: logs[name] for name, ours in _NAMES.items() if name in logs}}
        line |= {"zero_advantage_groups": self.skipped_groups(), "seconds": round(seconds, 2)}
        line |= {"training_seconds": round(self.spent, 1)}
        self.journal.write(**line)
        self.report(line | {"steps": state.max_steps})
        late = self.minutes is not None and self.processes.agree(self.spent >= 60 * self.minutes)
        if late:
            control.should_training_stop = True
        if late or state.global_step % self.validation_steps == 0 or state.global_step == state.max_steps:
            self._validate(state.global_step)
            self._mark = time.perf_counter()

    def _validate(self, step: int) -> None:
        metrics = self.validate()
        line = {"step": step, **{f"validation_{name}": value for name, value in metrics.items()}}
        found = (metrics["mae"], metrics["rmse"])
        if not self.validated or found < min(self.validated):
            self.keep(step, metrics)
        self.validated.append(found)
        self.journal.write(**line)
        self.report(line)


class Samples:
    """The answers sampled in training: a part a step while it runs, `completions.parquet` when it is done.

    A resumed run writes the same parts again.
    """

    def __init__(self, run: Path):
        self.folder, self.table = run / "completions", run / "completions.parquet"

    def write(self, step: int, rows: pl.DataFrame) -> None:
        self.folder.mkdir(exist_ok=True)
        with atomic_file(self.folder / f"{step:06d}.parquet") as path:
            rows.write_parquet(path)

    def finish(self, last_step: int) -> None:
        """Joins the parts of all steps up to `last_step` into one table."""
        parts = [part for part in sorted(self.folder.glob("*.parquet")) if int(part.stem) <= last_step]
        if parts:
            with atomic_file(self.table) as path:
                pl.concat([pl.read_parquet(part) for part in parts]).write_parquet(path)
            shutil.rmtree(self.folder)
