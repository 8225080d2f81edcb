"""Many answers to many prompts: every prompt is computed once, all answers are decoded together."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .frozen import States
from .guidance import Guide, Path
from .head import at_least_float32, hidden_states, replaced_head, widen
from .packed import packed_weights
from .ratings import Ratings
from .shared_prefix import Memory, Prefill, Step, shared_prefix_attention

FEW = 256  # among so few allowed tokens, only their rows of the head are multiplied


@dataclass
class Completion:
    """One answer. `chosen[i]` is False where the template forced token i; `log_probs[i]` is 0 there.

    Log-probabilities are those of the sampled token under the distribution it was sampled from (temperature and
    guidance included); of greedy tokens, at temperature 1.
    """

    tokens: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finished: bool = False
    ratings: list[float] | None = None  # how probable each rating of the scale was, where that was asked

    def add(self, tokens: Sequence[int], chosen: bool, log_prob: float = 0.0) -> None:
        self.tokens += tokens
        self.chosen += [chosen] * len(tokens)
        self.log_probs += [log_prob] * len(tokens)


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: int = 1,
    *,
    end: int,
    max_tokens: int,
    guide: Guide | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    states: States | None = None,
    ratings: Ratings | None = None,
    begun: Sequence[Sequence[int]] | None = None,
) -> list[list[Completion]]:
    """`answers` completions of each prompt (token ids), greedy at temperature 0, else sampled.

    A free answer ends with the token `end` or unfinished after `max_tokens`; a guided one ends where its grammar ends,
    and then gets `end` as a forced token. Rows that are finished cost nothing more. `states` is filled, if given. With
    `ratings`, answers that come to their rating get the probability of each, given what they wrote before it. begun:
    what the answers to each prompt begin with, as forced tokens; they must fit the grammar.
    """
    assert not (states and ratings), "states are of what was sampled, not of what was weighed"
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), ExitStack() as stack:
            seen = stack.enter_context(states.watched(model)) if states else []
            stack.enter_context(packed_weights(model))
            head = model.get_output_embeddings()
            project = head.forward  # of the packed weights, where they are
            stack.enter_context(replaced_head(model, hidden_states))
            stack.enter_context(shared_prefix_attention(model))
            run = _Run(model, prompts, answers, guide, states, seen)
            if begun:
                run.begin([tokens for tokens in begun for _ in range(answers)])
            while run.rows:
                if ratings:
                    run.weigh(ratings, head, project)
                run.extend(head, project, end, max_tokens, temperature, generator)
                run.drop_finished(max_tokens)
                run.feed()
    finally:
        model.train(was_training)
    return [run.completions[i : i + answers] for i in range(0, len(run.completions), answers)]


class _Run:
    """One call of `decode`. `rows[j]` is the answer in row j of the memory, None where there is none (any more)."""

    def __init__(self, model, prompts, answers: int, guide: Guide | None, states: States | None, seen: list[Tensor]):
        self.model, self.states, self.seen = model, states, seen
        self.device = model.device
        count = len(prompts) * answers
        self.completions = [Completion() for _ in range(count)]
        self.paths: list[Path] | None = [guide.follow() for _ in range(count)] if guide else None
        self.rows: list[int | None] = list(range(count))
        self.active = list(range(count))  # the answer each row of `hidden` belongs to
        self.fed = [0] * count  # tokens of each answer that the model has seen
        self.memory = Memory(torch.tensor([len(p) for p in prompts], device=self.device), answers)
        if states:
            states.answers = [[] for _ in range(count)]
        self.hidden = self._prefill(prompts).repeat_interleave(answers, 0)  # (active, D): what comes next is made of it

    def _prefill(self, prompts) -> Tensor:
        """Computes the prompts, what they all begin with just once; the last hidden state of each, (prompts, D)."""
        common = common_beginning(prompts)
        ids = [*prompts[0][:common], *(token for prompt in prompts for token in prompt[common:])]
        own = [len(p) - common for p in prompts]
        lengths, parents = ([common, *own], [-1] + [0] * len(own)) if common else (own, [-1] * len(own))
        tree = Prefill(self.memory, lengths, parents, self.device)
        last = torch.tensor(tree.starts[len(lengths) - len(own) + 1 :], device=self.device) - 1
        hidden = self._forward(ids, tree, last)
        if self.states:
            x = self.seen.pop()
            first = len(lengths) - len(own)
            self.states.prompts = [
                torch.cat([x[place] for place in tree.line(i)]) for i in range(first, len(lengths))
            ]  # fmt: skip
        return hidden

    def _forward(self, ids: Sequence[int], layout: Prefill | Step, kept: Tensor) -> Tensor:
        return (
            self.model(
                input_ids=torch.tensor([ids], device=self.device),
                position_ids=layout.positions,
                use_cache=False,
                logits_to_keep=kept,
                layout=layout,
            )
            .logits[0]
            .to(self.model.dtype)
        )

    def begin(self, begun: Sequence[Sequence[int]]) -> None:
        """Forces these tokens, one list for each answer."""
        for i, tokens in enumerate(begun):
            self.completions[i].add(list(tokens), chosen=False)
            if self.paths and tokens:
                self.paths[i].take(list(tokens))
        self.feed()

    def extend(self, head: nn.Module, project, end: int, max_tokens: int, temperature: float, generator) -> None:
        """Samples or forces what comes next in every active answer."""
        # Where an answer begins with forced tokens, the policy has no say yet.
        paths = self.paths
        choosing = [j for j, i in enumerate(self.active) if not (paths and self._force(paths[i], i))]
        if choosing:
            bits = np.stack([paths[self.active[j]].allowed() for j in choosing]) if paths else None
            chosen = _choose(head, project, self.hidden[choosing], bits, temperature, generator)
            for j, token, log_prob in zip(choosing, *chosen, strict=True):
                i = self.active[j]
                self.completions[i].add([token], chosen=True, log_prob=log_prob)
                if paths:
                    paths[i].take([token])
                    self._force(paths[i], i)
        for i in self.active:
            completion = self.completions[i]
            if not paths:
                completion.finished = completion.tokens[-1] == end
            elif paths[i].done:
                completion.add([end], chosen=False)
                completion.finished = True

    def weigh(self, ratings: Ratings, head: nn.Module, project) -> None:
        """Notes how probable each rating is, in answers that stand before theirs."""
        due = [j for j, i in enumerate(self.active) if ratings.due(self.completions[i].tokens)]
        if not due:
            return
        rows = [j for j, i in enumerate(self.rows) if i is not None]

        def score(hidden: Tensor, tokens: list[int]) -> Tensor:
            if type(head) is not nn.Linear:
                return at_least_float32(project(hidden))[:, tokens]
            return at_least_float32(
                F.linear(hidden, head.weight[tokens], None if head.bias is None else head.bias[tokens])
            )

        def follow(tokens: tuple[int, ...]) -> Tensor:
            """What is written into the memory here is overwritten by what the answer goes on with."""
            fed = [self.fed[self.active[j]] for j in due]
            row = torch.tensor([rows[j] for j in due for _ in tokens], device=self.device)
            slot = torch.tensor([at + k for at in fed for k in range(len(tokens))], device=self.device)
            column = torch.arange(len(tokens), device=self.device).repeat(len(due))
            last = torch.arange(1, len(due) + 1, device=self.device) * len(tokens) - 1
            step = Step(self.memory, row, slot, column, len(tokens))
            return self._forward(list(tokens) * len(due), step, last)

        chances = ratings.weigh(self.hidden[due], score, follow)
        for j, row in zip(due, chances.tolist(), strict=True):
            self.completions[self.active[j]].ratings = row

    def _force(self, path: Path, i: int) -> bool:
        """Appends the tokens that must come next; whether there were any."""
        forced = path.forced()
        if forced:
            self.completions[i].add(forced, chosen=False)
            path.take(forced)
        return bool(forced)

    def drop_finished(self, max_tokens: int) -> None:
        """Takes finished answers out; out of the memory too, when that makes it a quarter smaller."""

        def goes_on(i: int | None) -> bool:
            return i is not None and not self.completions[i].finished and len(self.completions[i].tokens) < max_tokens

        self.rows = [i if goes_on(i) else None for i in self.rows]
        self.active = [i for i in self.rows if i is not None]
        per = self.memory.per
        groups = [self.rows[k : k + per] for k in range(0, len(self.rows), per)]
        kept = [k for k, group in enumerate(groups) if any(i is not None for i in group)]
        fewer = max((sum(i is not None for i in groups[k]) for k in kept), default=0)
        if not kept:
            self.rows = []
        elif 4 * len(kept) * fewer <= 3 * len(self.rows):
            old: list[int] = []
            for k in kept:  # the active rows of a group first, then any to fill its places
                places = sorted(range(k * per, k * per + per), key=lambda j: self.rows[j] is None)
                old += places[:fewer]
            self.memory.arrange(
                torch.tensor(kept, device=self.device), fewer, torch.tensor(old, device=self.device)
            )  # fmt: skip
            self.rows = [self.rows[j] for j in old]
            self.active = [i for i in self.rows if i is not None]

    def feed(self) -> None:
        """Runs the newest tokens of every active answer."""
        if not self.active:
            return
        row: list[int] = []
        slot: list[int] = []
        column: list[int] = []
        ids: list[int] = []
        last: list[int] = []
        for j, i in enumerate(self.rows):
            if i is None:
                continue
            tokens = self.completions[i].tokens
            new = range(self.fed[i], len(tokens))
            row += [j] * len(new)
            slot += new
            column += range(len(new))
            ids += tokens[self.fed[i] :]
            last.append(len(ids) - 1)
            self.fed[i] = len(tokens)
        row_t, slot_t, column_t, last_t = (torch.tensor(x, device=self.device) for x in (row, slot, column, last))
        step = Step(self.memory, row_t, slot_t, column_t, max(column) + 1)
        self.hidden = self._forward(ids, step, last_t)
        if self.states:
            ends = [0, *(x + 1 for x in last)]
            states = self.seen.pop()
            for i, start, end in zip(self.active, ends, ends[1:], strict=False):
                self.states.answers[i].append(states[start:end])


def common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; each keeps at least one of its own. 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    least, most = min(map(tuple, prompts)), max(map(tuple, prompts))  # in dictionary order: they differ first
    shortest = min(len(p) for p in prompts) - 1
    return next((k for k, (a, b) in enumerate(zip(least, most, strict=False)) if a != b or k == shortest), shortest)


def _choose(
    head: nn.Module, project, hidden: Tensor, bits: np.ndarray | None, temperature: float, generator
) -> tuple[list[int], list[float]]:
    """hidden (n, D) -> the next tokens, and their log-probabilities."""
    tokens, log_probs = [0] * len(hidden), [0.0] * len(hidden)

    def put(which: Sequence[int], scores: Tensor, ids: Tensor | None = None) -> None:
        chosen, chances = _sample(at_least_float32(scores), temperature, generator)
        chosen = chosen if ids is None else ids[chosen]
        for j, token, log_prob in zip(which, chosen.tolist(), chances.tolist(), strict=True):
            tokens[j], log_probs[j] = token, log_prob

    if bits is None:
        put(range(len(hidden)), project(hidden))
        return tokens, log_probs
    narrow = (np.bitwise_count(bits).sum(1) <= FEW) & (type(head) is nn.Linear)
    many, few = np.flatnonzero(~narrow).tolist(), np.flatnonzero(narrow).tolist()
    if many:
        scores = project(hidden[many])
        put(many, scores.masked_fill_(~widen(bits[many], scores.shape[1], scores.device), float("-inf")))
    if few:
        allowed = widen(bits[few], len(head.weight), hidden.device)
        ids = allowed.any(0).nonzero()[:, 0]
        scores = F.linear(hidden[few], head.weight[ids], None if head.bias is None else head.bias[ids])
        put(few, scores.masked_fill(~allowed[:, ids], float("-inf")), ids)
    return tokens, log_probs


def _sample(scores: Tensor, temperature: float, generator) -> tuple[Tensor, Tensor]:
    """scores (n, V), changed in place -> tokens (n,), and their log-probabilities (n,).

    By the inverse of the cumulated distribution, in two steps: which block of tokens, and which token in it. Only the
    exponentials and their sums over blocks are passes over all V.
    """
    highest, best = scores.max(-1, keepdim=True)
    if temperature == 0:
        return best[:, 0], -scores.sub_(highest).exp_().sum(-1).log()
    scores.sub_(highest)
    weights = (scores if temperature == 1 else scores.div_(temperature)).exp_()
    size = int(weights.shape[1] ** 0.5)
    missing = -weights.shape[1] % size
    blocks = (F.pad(weights, (0, missing)) if missing else weights).unflatten(1, (-1, size))
    sums = blocks.sum(-1, dtype=torch.float64).cumsum_(-1)
    total = sums[:, -1:].clone()
    draw = torch.rand(len(weights), 1, dtype=torch.float64, generator=generator, device=weights.device) * total
    block = _first_above(sums, draw)
    before = F.pad(sums, (1, 0)).gather(1, block)
    inside = blocks[torch.arange(len(blocks), device=block.device), block[:, 0]].double().cumsum_(-1)
    token = block * size + _first_above(inside, draw - before)
    return token[:, 0], (weights.gather(1, token).double() / total).log()[:, 0].to(weights.dtype)


def _first_above(cumulated: Tensor, draw: Tensor) -> Tensor:
    """(n, m) rising, (n, 1) -> (n, 1): the first place with more than `draw`: never one that adds nothing."""
    below_all = torch.nextafter(cumulated[:, -1:], cumulated.new_zeros(()))
    return torch.searchsorted(cumulated, draw.minimum(below_all), right=True)
