"""Who answers: a policy in this process (`Local`) or a model behind an endpoint (`remote.Remote`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from reczero.errors import BadRequest
from reczero.reasoning import Answer, Context, Scale, Template
from reczero.rollout.decoder import Completion
from reczero.rollout.policy import Policy
from reczero.rollout.shared_prefix import cannot_share

TOGETHER = 64  # candidates of one user that are answered at a time
Progress = Callable[[int], None]


def nobody(_: int) -> None:
    """A `Progress` that tells nobody."""


@dataclass(frozen=True)
class Prediction:
    """rating: the number that was written, None where the answer is malformed (`details["fault"]` says how).

    reasoning: section -> text. distribution: how probable each rating of the scale was given the reasoning, None where
    that is not known; expected: its mean. details: text (the whole answer), tokens, fault, decoding.
    """

    rating: float | None
    reasoning: dict[str, str]
    distribution: list[float] | None
    expected: float | None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def parsed(self) -> bool:
        return self.rating is not None

    @property
    def score(self) -> float:
        """What candidates are ranked by: the mean, else the number; the last of all without either."""
        known = (self.expected, self.rating)
        return next((number for number in known if number is not None), float("-inf"))

    @classmethod
    def of(
        cls, text: str, answer: Answer, scale: Scale, distribution: list[float] | None, tokens: int, decoding: str
    ) -> "Prediction":
        given = distribution if answer.well_formed else None
        mean = sum(p * rating for p, rating in zip(given, scale.grid(), strict=True)) if given else None
        details = {"text": text, "tokens": tokens, "fault": answer.fault, "decoding": decoding}
        return cls(answer.rating, answer.texts, given, mean, details)


class Answering(Protocol):
    """Contexts in, predictions out. name: of the model; key: a hash of all that its answers depend on."""

    name: str
    key: str
    template: Template

    def answer(
        self, contexts: Sequence[Context], *, together: bool = False, batch_size: int = 32, progress: Progress = nobody
    ) -> list[Prediction]:
        """A prediction for each context (such as `check` passes), in their order. together: they are one user's, and
        differ in their item. progress: told how many contexts each batch was. Raises UserError."""

    def check(self, context: Context) -> None:
        """Raises BadRequest where the prompt of a context is longer than the model can read."""


class Local:
    """A policy in this process: greedy, guided where it was trained so."""

    def __init__(self, policy: Policy, name: str, key: str = ""):
        self.policy, self.name, self.key, self.template = policy, name, key, policy.template
        self.shares = not cannot_share(policy.model)
        self.decoding = "greedy, guided" if policy.guided else "greedy"
        self._room = getattr(policy.model.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def answer(
        self, contexts: Sequence[Context], *, together: bool = False, batch_size: int = 32, progress: Progress = nobody
    ) -> list[Prediction]:
        how: dict[str, Any] = {"weigh": True, "together": together} if self.shares else {}
        size = TOGETHER if together else batch_size
        made = self.policy.complete(contexts, size, progress, **how)
        return [self.read(completion) for (completion,) in made]

    def read(self, completion: Completion) -> Prediction:
        """A finished answer."""
        text, answer = self.policy.read(completion)
        tokens = len(completion.tokens)
        return Prediction.of(text, answer, self.template.scale, completion.ratings, tokens, self.decoding)

    def encode(self, context: Context) -> list[int]:
        """Its prompt in tokens. Raises BadRequest where that is too long."""
        tokens = self.policy.encode(self.template.messages(context))
        if self._room is not None and len(tokens) + self.policy.longest > self._room:
            raise BadRequest(
                f"the prompt has {len(tokens):,} tokens and its answer up to {self.policy.longest:,}, more than the "
                f"{self._room:,} that the model can read: shorten texts or history"
            )
        return tokens

    def check(self, context: Context) -> None:
        if self._room is not None:
            self.encode(context)
