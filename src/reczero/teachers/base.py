"""What every teacher is: examples in, attempts out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reczero.reasoning import Context, Scale, Template


@dataclass(frozen=True)
class Task:
    """An example to write about. `told`: the true rating, where the teacher is shown it."""

    example_id: str
    context: Context
    told: float | None = None


@dataclass(frozen=True)
class Attempt:
    """One answer of a teacher, or why there is none (`text` is None) or not a whole one (`fault` beside a text).

    cost: in whatever money the recipe's prices are. confidence: mean log-probability of the tokens that were chosen.
    belief: how probable the teacher finds each rating of the scale, where it says so.
    """

    text: str | None
    fault: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    confidence: float | None = None
    belief: list[float] | None = None


Written = list[tuple[Task, list[Attempt]]]


class Teacher(ABC):
    name: str

    @abstractmethod
    def write(self, tasks: Sequence[Task]) -> Iterator[Written]:
        """The attempts at each task, at least one, as they are finished, in any order and in lots of any size.

        A task that the budget does not allow, or that no answer came to, is left out: the next call asks again.
        Raises UserError where none can succeed (no server, say).
        """

    @property
    def spent(self) -> dict[str, float]:
        """Tokens and money so far, earlier calls included, where they count."""
        return {}


def prompt_of(template: Template, task: Task) -> list[dict[str, str]]:
    """The messages of training; where the teacher is told the truth, with that added at the end."""
    messages = template.messages(task.context)
    if task.told is None:
        return messages
    told = (
        f"The user's true rating is {Scale.text(task.told)}. Write the same form, ending on that rating, with the "
        "reasoning that leads to it from the data above alone. Do not mention that you know the rating."
    )
    return [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}\n\n{told}"}]
