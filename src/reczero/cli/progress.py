"""How far a long command is: a bar with the time left on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

PLAIN_SECONDS = 15  # between two plain lines about rows or bytes; training steps get a line each


class Progress:
    """Told in the terms of `reczero.training.pipeline.train`. Everything goes to stderr: stdout is for results."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, soft_wrap=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=self._console, transient=True) if self._console.is_terminal else None
        self._task: Any = None
        self._what = ""
        self._began = time.perf_counter()
        self._said = self._began

    def __enter__(self) -> "Progress":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def say(self, text: str) -> None:
        self._console.print(f"[{self._elapsed()}] {text}", markup=False)

    def report(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl, or how many rows were predicted."""
        if "predicted" in line:
            self.moved(line["what"], line["predicted"], line["of"], line.get("note"))
            if not self._bars and line["predicted"] == line["of"]:
                self.say(f"{line['what']}: {line['predicted']} of {line['of']}{_and(line.get('note'))}")
        elif "validation_mae" in line:
            self.say(
                f"{line['stage']} step {line['step']}: validation MAE {line['validation_mae']:.3f}, "
                f"RMSE {line['validation_rmse']:.3f}, "
                f"{line['validation_parse_rate']:.0%} parsed, most frequent rating {line['validation_mode_share']:.0%}"
            )
        else:
            error = f", |error| {line['rating_abs_error']:.2f}" if "rating_abs_error" in line else ""
            what = f"reward {line['reward']:.3f}" if "reward" in line else f"loss {line['loss']:.3f}"
            self.say(f"{line['stage']} step {line['step']} of {line['steps']}: {what}{error}, {line['seconds']:.0f} s")
            self._move(line["stage"], line["step"], line["steps"])

    def moved(self, what: str, done: int, total: int, note: str | None = None) -> None:
        """`done` of `total` of `what`: moves its bar; elsewhere a line now and then."""
        self._move(what, done, total, note)
        now = time.perf_counter()
        if not self._bars and 0 < done < total and now - self._said >= PLAIN_SECONDS:
            self._said = now
            self.say(f"{what}: {done:,} of {total:,} ({done / total:.0%}){_and(note)}")

    def _move(self, what: str, done: int, total: int, note: str | None = None) -> None:
        if not self._bars:
            return
        if what != self._what:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task, self._what = self._bars.add_task(what, total=total), what
        self._bars.update(self._task, completed=done, description=f"{what}{_and(note)}")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.perf_counter() - self._began), 60)
        return f"{minutes:02d}:{seconds:02d}"


def _and(note: str | None) -> str:
    return f", {note}" if note else ""
