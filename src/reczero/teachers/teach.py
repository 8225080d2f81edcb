"""Asks a teacher, and keeps what the paper keeps: traces that end on the truth (arXiv 2510.23077, rejection sampling).

A trace is kept if it is well-formed and its rating equals the truth. Otherwise the teacher is shown the true rating and
asked again, and what it writes then is kept if it ends on the truth and does not mention that it was told.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from reczero.errors import UserError
from reczero.files import atomic_file, read_json, whole_lines, write_json, writing
from reczero.reasoning import Answer, Context, Template, parse
from reczero.recipes import TeacherRecipe

from .base import Attempt, Task, Teacher

Report = Callable[[dict[str, Any]], None]

TRACES: dict[str, pl.DataType] = {
    "example_id": pl.String(),
    "rating": pl.Float64(),
    "verdict": pl.String(),  # kept at once, kept when told, or why it is not kept
    "kept": pl.Boolean(),
    "text": pl.String(),  # what is trained on, in the template's form; null where nothing is kept
    "first_text": pl.String(),
    "first_rating": pl.Float64(),
    "first_verdict": pl.String(),
    "told_text": pl.String(),
    "told_rating": pl.Float64(),
    "told_verdict": pl.String(),
    "samples": pl.Int64(),
    "correct": pl.Int64(),
    "prompt_tokens": pl.Int64(),
    "completion_tokens": pl.Int64(),
    "cost": pl.Float64(),
    "teacher": pl.String(),
    "belief": pl.List(pl.Float64()),  # the teacher's, over the scale's ratings; null where it says none
}
GOOD = "ends on the truth"
AT_ONCE, WHEN_TOLD = "kept at once", "kept when told"
UNANSWERED, DUPLICATE, SURPLUS = "no answer yet", "duplicate", "surplus of its rating"

# How a text gives away that its writer knew the rating.
_MENTIONS = re.compile(
    r"""\b(
      (true|actual|given|known|real|provided|revealed|stated|correct|final|target|observed)\s+(rating|score|answer)
    | ground[- ]truth
    | (was|were|am|been|being|is)\s+(told|informed|given\s+the)
    | (the\s+)?rating\s+(that\s+)?(was|is|has\s+been)\s+(given|provided|revealed|known|told|stated|supplied)
    | (the\s+)?(user|they|he|she)\s+(actually|in\s+fact|indeed|really|ultimately)\s+(rated|gave|scored)
    | (the\s+)?(user|they|he|she)\s+(rated|scored)\s+(this|it)
    | (the\s+)?(user|they|he|she)\s+gave\s+(this|it)\s+(an?\s+)?[0-9]
    | as\s+(instructed|told|stated\s+in\s+the\s+prompt)
    | (you|the\s+prompt)\s+(told|said|gave|mentioned|revealed)
    | hindsight
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


class Judged(NamedTuple):
    """verdict: `GOOD`, or what is wrong."""

    verdict: str
    answer: Answer
    attempt: Attempt


def judge(attempt: Attempt, truth: float, template: Template, tolerance: float = 0.0, told: bool = False) -> Judged:
    """What the filter says of one attempt; `tolerance` is how far from the truth its rating may lie, inclusive."""
    if attempt.text is None:
        return Judged(f"no answer: {attempt.fault}", Answer(None), attempt)
    answer = parse(attempt.text, template)
    if answer.rating is None:
        verdict = f"malformed: {attempt.fault or answer.fault}"
    elif abs(answer.rating - truth) > tolerance + 1e-9:
        verdict = "wrong rating"
    elif told and any(map(mentions_rating, answer.texts.values())):
        verdict = "mentions that it was told"
    else:
        verdict = GOOD
    return Judged(verdict, answer, attempt)


def mentions_rating(text: str) -> bool:
    """Whether a section gives away that its writer knew the rating. Errs on the side of throwing a trace away."""
    return _MENTIONS.search(text) is not None


def kept_text(answer: Answer, truth: float, template: Template) -> str:
    """A kept answer as it is trained on: the sections alone, each on one line and without angle brackets, as guided
    answers are, and the true rating."""
    lines = {name: " ".join(text.replace("<", "‹").replace(">", "›").split()) for name, text in answer.texts.items()}
    return template.write(lines, truth)


@dataclass
class _Row:
    """An example on its way through the filter."""

    task: Task
    truth: float
    first: list[Judged]
    told: list[Judged]
    text: str | None = None
    verdict: str = ""
    belief: list[float] | None = None

    def choose(self, among: list[Judged], keep: str, seen: Counter[str]) -> Judged | None:
        good = [judged for judged in among if judged.verdict == GOOD]
        if not good:
            return None
        if keep == "confident":
            return max(good, key=lambda j: j.attempt.confidence if j.attempt.confidence is not None else -1e9)
        if keep == "diverse":
            return max(good, key=lambda j: _rarity(j, seen))
        return good[0]


def _words(judged: Judged) -> set[str]:
    return set(" ".join(judged.answer.texts.values()).lower().split())


def _rarity(judged: Judged, seen: Counter[str]) -> float:
    """Mean over an answer's different words of 1 / (1 + in how many kept answers the word stands)."""
    words = _words(judged)
    return sum(1 / (1 + seen[word]) for word in words) / max(1, len(words))


def teach(
    teacher: Teacher,
    template: Template,
    examples: pl.DataFrame,
    contexts: Sequence[Context],
    settings: TeacherRecipe,
    fingerprint: str,
    folder: Path,
    report: Report,
) -> pl.DataFrame:
    """The traces of `examples` (with `example_id`, `rating`; one context each), written to `folder`; columns `TRACES`.

    `attempts.jsonl` there holds every attempt as it comes, so that a second call asks for nothing twice.
    fingerprint: of all that the attempts depend on. Raises UserError if the folder's are of another.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    about = folder / "teach.json"
    known = read_json(about) if about.exists() else {"fingerprint": fingerprint}
    if not isinstance(known, dict) or known.get("fingerprint") != fingerprint:
        raise UserError(f"{folder}: holds traces by another teacher, template or data; choose another --out.")
    write_json(about, {"fingerprint": fingerprint, "teacher": teacher.name})
    journal = _Journal(folder / "attempts.jsonl", teacher)
    truths = dict(zip(examples["example_id"], examples["rating"], strict=True))
    tasks = [Task(name, context) for name, context in zip(examples["example_id"], contexts, strict=True)]

    def judged(told: bool, tasks: list[Task]) -> dict[str, list[Judged]]:
        journal.complete(tasks, "told the truth" if told else "asked", report)
        return {
            task.example_id: [
                judge(attempt, truths[task.example_id], template, settings.tolerance, told)
                for attempt in journal.attempts(task)
            ]
            for task in tasks
        }

    first = judged(False, tasks)
    again = [
        Task(task.example_id, task.context, truths[task.example_id])
        for task in tasks
        if settings.retell and first[task.example_id] and all(j.verdict != GOOD for j in first[task.example_id])
    ]
    told = judged(True, again)
    rows = [_Row(t, truths[t.example_id], first[t.example_id], told.get(t.example_id, [])) for t in tasks]
    _filter(rows, template, settings)
    table = pl.DataFrame([_line(row, teacher.name) for row in rows], schema=TRACES)
    with atomic_file(folder / "traces.parquet") as path:
        table.write_parquet(path)
    counts = dict(Counter(_reason(row.verdict) for row in rows).most_common())
    done = {"settings": settings.model_dump(mode="json"), "counts": counts, "spent": teacher.spent}
    write_json(about, {"fingerprint": fingerprint, "teacher": teacher.name, **done})
    return table


class _Journal:
    """Every attempt, appended as it comes; a line holds what is yielded at once: [example_id, told, attempts]s."""

    def __init__(self, path: Path, teacher: Teacher):
        self.path, self.teacher = path, teacher
        self._done: dict[tuple[str, bool], list[Attempt]] = {}  # by example, and whether the truth was told
        try:
            for line in map(json.loads, whole_lines(path)):
                for example_id, told, attempts in line:
                    self._done[example_id, told is not None] = [Attempt(**attempt) for attempt in attempts]
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}: damaged ({error}); remove it, and everything kept elsewhere is used again."
            ) from error

    def attempts(self, task: Task) -> list[Attempt]:
        """Nothing for a task that the teacher left out."""
        return self._done.get((task.example_id, task.told is not None), [])

    def complete(self, tasks: Iterable[Task], what: str, report: Report) -> None:
        """Has the teacher do what of `tasks` is not done yet."""
        tasks = list(tasks)
        missing = [task for task in tasks if not self.attempts(task)]
        done = len(tasks) - len(missing)
        with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            for written in self.teacher.write(missing):
                line = [(task.example_id, task.told, [asdict(a) for a in attempts]) for task, attempts in written]
                file.write(json.dumps(line) + "\n")
                file.flush()
                self._done |= {(task.example_id, task.told is not None): attempts for task, attempts in written}
                done += len(written)
                cost = self.teacher.spent.get("cost")
                note = {"note": f"{cost:.2f} spent"} if cost else {}
                report({"what": f"{self.teacher.name} {what}", "predicted": done, "of": len(tasks), **note})


def _filter(rows: list[_Row], template: Template, settings: TeacherRecipe) -> None:
    """Gives every row its verdict, and those that are kept their text."""
    seen: Counter[str] = Counter()
    texts: set[str] = set()
    for row in rows:
        for among, verdict in ((row.first, AT_ONCE), (row.told, WHEN_TOLD)):
            if row.text is None and (chosen := row.choose(among, settings.keep, seen)):
                row.text, row.verdict = kept_text(chosen.answer, row.truth, template), verdict
                row.belief = chosen.attempt.belief
                if row.text in texts and template.thinking:  # ratings without reasoning are alike by nature
                    row.text, row.verdict = None, DUPLICATE
                else:
                    texts.add(row.text)
                    seen.update(_words(chosen))
                break
        if not row.verdict:
            last = row.told or row.first
            row.verdict = last[0].verdict if last else UNANSWERED
    if settings.balance:
        kept = [row for row in rows if row.text is not None]
        most = min(Counter(row.truth for row in kept).values(), default=0)
        room = dict.fromkeys({row.truth for row in kept}, most)
        for row in kept:
            room[row.truth] -= 1
            if room[row.truth] < 0:
                row.text, row.verdict = None, SURPLUS


def _reason(verdict: str) -> str:
    """A verdict without its particulars, for counting."""
    return verdict.split(":")[0]


def _line(row: _Row, teacher: str) -> dict[str, Any]:
    attempts = [judged.attempt for judged in (*row.first, *row.told)]
    line: dict[str, Any] = {
        "example_id": row.task.example_id,
        "rating": row.truth,
        "verdict": row.verdict,
        "kept": row.text is not None,
        "text": row.text,
        "samples": len(row.first),
        "correct": sum(judged.verdict == GOOD for judged in row.first),
        "prompt_tokens": sum(attempt.prompt_tokens for attempt in attempts),
        "completion_tokens": sum(attempt.completion_tokens for attempt in attempts),
        "cost": sum(attempt.cost for attempt in attempts),
        "teacher": teacher,
        "belief": row.belief,
    }
    for name, tried in (("first", row.first), ("told", row.told)):
        shown = next((judged for judged in tried if judged.verdict == GOOD), tried[0] if tried else None)
        line[f"{name}_text"] = shown.attempt.text if shown else None
        line[f"{name}_rating"] = shown.answer.rating if shown else None
        line[f"{name}_verdict"] = shown.verdict if shown else None
    return line
