"""Is the reasoning real? The same rows again, with what the policy reads, or what it wrote, altered.

A policy that reads the history rates otherwise when it is another user's; one whose rating follows from its reasoning
rates otherwise when it is another's. (Perturbation tests of faithfulness: Lanham et al. 2023, Measuring Faithfulness in
Chain-of-Thought Reasoning; Turpin et al. 2023.) Needs a model that can share prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from reczero.errors import UserError
from reczero.evaluation.findings import UNALTERED
from reczero.reasoning import Answer, Context, Opinion, Standing

from .decoder import Completion
from .packed import packed_weights
from .policy import Policy
from .shared_prefix import cannot_share

SCHEMA: dict[str, pl.DataType] = {
    "example_id": pl.String(), "probe": pl.String(), "prediction": pl.Float64(),
    "distribution": pl.List(pl.Float64()), "text": pl.String(),
}  # fmt: skip


def probe(
    policy: Policy,
    examples: pl.DataFrame,
    contexts: Sequence[Context],
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> pl.DataFrame:
    """Greedy answers of `examples` (example_id, user_id) under each probe: rows of `SCHEMA`, prediction null where
    there is none. An answer without a well-formed reasoning has none to alter: it stays as it was under the last three.

    progress: told how many of len(PROBES) x rows are done. Raises UserError.
    """
    if reason := cannot_share(policy.model):
        raise UserError(f"--probe: this model can't be probed ({reason}); leave it out")
    rng = np.random.default_rng(seed)
    other = _others(examples["user_id"].to_numpy(), rng)
    altered = {
        UNALTERED: list(contexts),
        "other-user": [_as_user(context, contexts[k]) for context, k in zip(contexts, other, strict=True)],
        "shuffled-history": [_shuffled(context, rng) for context in contexts],
        "no-history": [_as_user(context, Context(context.item, standing=Standing())) for context in contexts],
        "no-item-text": [_bare(context) for context in contexts],
    }
    asked = _Asked(policy, batch_size, progress)
    answers = {name: asked(given) for name, given in altered.items()}
    own = [policy.read(completion) for completion in answers[UNALTERED]]
    begun = [
        _up_to_rating(policy, completion, answer[1]) for completion, answer in zip(answers[UNALTERED], own, strict=True)
    ]
    cut = [tokens and _cut(policy, tokens) for tokens in begun]
    swapped = [tokens and (begun[k] or tokens) for tokens, k in zip(begun, other, strict=True)]
    for name, starts in (("own-reasoning", begun), ("cut-reasoning", cut), ("other-reasoning", swapped)):
        answers[name] = asked(contexts, starts, answers[UNALTERED])
    tables = []
    for name, completions in answers.items():
        rows = [
            (example, name, answer.rating, completion.ratings, text)
            for example, completion in zip(examples["example_id"], completions, strict=True)
            for text, answer in [policy.read(completion)]
        ]
        tables.append(pl.DataFrame(rows, schema=SCHEMA, orient="row"))
    return pl.concat(tables)


class _Asked:
    """Greedy completions of contexts, in their order."""

    def __init__(self, policy: Policy, batch_size: int, progress: Callable[[int], None]):
        self.policy, self.batch_size, self.progress, self.done = policy, batch_size, progress, 0

    def __call__(
        self,
        contexts: Sequence[Context],
        begun: Sequence[list[int]] | None = None,
        otherwise: Sequence[Completion] = (),
    ) -> list[Completion]:
        """begun: what each answer begins with; where that is empty, it is taken from `otherwise`."""
        found: list[Completion] = list(otherwise) or [Completion()] * len(contexts)
        rows = [i for i in range(len(contexts)) if begun is None or begun[i]]
        prompts = {i: self.policy.encode(self.policy.template.messages(contexts[i])) for i in rows}
        rows.sort(key=lambda i: len(prompts[i]))
        with packed_weights(self.policy.model):
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                starts = None if begun is None else [begun[i] for i in batch]
                answers = self.policy.answer([prompts[i] for i in batch], weigh=True, begun=starts)
                for i, (completion,) in zip(batch, answers, strict=True):
                    found[i] = completion
                self.done += len(batch)
                self.progress(self.done)
        self.done += len(contexts) - len(rows)
        return found


def _others(users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(rows,) for each row another row, of another user where there is one: a random order, read a step further."""
    order = rng.permutation(len(users))
    place = np.argsort(order)
    taken = np.empty(len(users), int)
    for i in range(len(users)):
        ahead = (place[i] + 1 + np.arange(len(users) - 1)) % len(users)
        candidates = order[ahead] if len(users) > 1 else np.array([i])
        different = candidates[users[candidates] != users[i]]
        taken[i] = different[0] if len(different) else candidates[0]
    return taken


def _as_user(context: Context, other: Context) -> Context:
    """`context` with all that depends on the user taken from `other`."""
    given = replace(context, user_history=other.user_history, user_avg=other.user_avg, user_count=other.user_count)
    if context.standing is None or other.standing is None:
        return given
    return replace(given, standing=replace(other.standing, item_mean=context.standing.item_mean))


def _shuffled(context: Context, rng: np.random.Generator) -> Context:
    order = rng.permutation(len(context.user_history))
    return replace(context, user_history=tuple(context.user_history[k] for k in order))


def _bare(context: Context) -> Context:
    item = replace(context.item, title="", categories=(), creator=None, price=None, description=None)
    return replace(context, item=item, item_history=tuple(Opinion(o.rating) for o in context.item_history))


def _up_to_rating(policy: Policy, completion: Completion, answer: Answer) -> list[int]:
    """The tokens of a well-formed answer up to where its rating begins; empty if it has no such place or no
    reasoning."""
    if not answer.well_formed or not policy.template.thinking:
        return []
    tokens = completion.tokens
    return next((tokens[:k] for k in range(len(tokens), 0, -1) if policy.ratings.due(tokens[:k])), [])


def _cut(policy: Policy, tokens: list[int]) -> list[int]:
    """An answer up to its rating, of each section only the first half of its tokens: what the policy itself wrote, so
    that it fits the grammar as the whole did."""
    texts = [policy.tokenizer.decode(tokens[:k]) for k in range(len(tokens) + 1)]
    kept = list(range(len(tokens)))
    for section in policy.template.thinking:
        begins = next(k for k, text in enumerate(texts) if section.open in text)
        before = len(texts[-1].split(section.close)[0])  # characters
        ends = max(k for k, text in enumerate(texts) if len(text) <= before)
        middle = (begins + ends + 1) // 2
        # Not within a character, which may be several tokens.
        middle = next((k for k in range(middle, ends) if not texts[k].endswith("\ufffd")), ends)
        kept = [k for k in kept if not middle <= k < ends]
    return [tokens[k] for k in kept]
