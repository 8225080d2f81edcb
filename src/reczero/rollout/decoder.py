"""Many answers to many prompts: every prompt is computed once, all answers are decoded together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from .shared_prefix import Memory, Pool, Prefill, Step, shared_prefix_attention

WIDTH = 64  # new tokens of an answer that are run at a time: bounds the scores of long ones against a long prompt
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
    ratings: list[float] | None = None  # how probable each rating of the scale was, where that was asked,
    rating_at: int | None = None  # and at which of the tokens

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
    together: bool = False,
) -> list[list[Completion]]:
    """`answers` completions of each prompt (token ids), greedy at temperature 0, else sampled.

    A free answer ends with the token `end` or unfinished after `max_tokens`; a guided one ends where its grammar ends,
    and then gets `end` as a forced token. Rows that are finished cost nothing more. `states` is filled, if given. With
    `ratings`, answers that come to their rating get the probability of each, given what they wrote before it. begun:
    what the answers to each prompt begin with, as forced tokens; they must fit the grammar. together: see
    `Decoding.add`.
    """
    assert not states or not ratings or ratings.single, "states are of what was sampled, not of what was weighed"
    with inference(model, states) as ready:
        run = Decoding(
            ready, end=end, max_tokens=max_tokens, guide=guide, temperature=temperature, generator=generator,
            ratings=ratings,
        )  # fmt: skip
        completions = run.add(prompts, answers, begun=begun, together=together)
        while run.active:
            run.step()
    return [completions[i : i + answers] for i in range(0, len(completions), answers)]


@dataclass
class Inference:
    """A model made ready to answer, for as long as `inference` lasts."""

    model: PreTrainedModel
    head: nn.Module
    project: Callable[[Tensor], Tensor]  # the head, of the packed weights where they are
    states: States | None
    seen: list[Tensor]

    def forward(self, ids: Sequence[int], layout: Prefill | Step, kept: Tensor) -> Tensor:
        """The last hidden states of the tokens `kept`, (kept, D)."""
        return (
            self.model(
                input_ids=torch.tensor([ids], device=self.model.device),
                position_ids=layout.positions,
                use_cache=False,
                logits_to_keep=kept,
                layout=layout,
            )
            .logits[0]
            .to(self.model.dtype)
        )


@contextmanager
def inference(model: PreTrainedModel, states: States | None = None) -> Iterator[Inference]:
    """Inside, in this thread, the model answers and does nothing else: packed weights, no gradient, no logits."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), ExitStack() as stack:
            seen = stack.enter_context(states.watched(model)) if states else []
            stack.enter_context(packed_weights(model))
            head = model.get_output_embeddings()
            project = head.forward
            stack.enter_context(replaced_head(model, hidden_states))
            stack.enter_context(shared_prefix_attention(model))
            yield Inference(model, head, project, states, seen)
    finally:
        model.train(was_training)


@dataclass
class _Row:
    """One answer under way. lead: tokens between the prompt in the memory and the answer; fed: how many of lead and
    answer the model has seen."""

    number: int
    completion: Completion
    path: Path | None
    lead: list[int] = field(default_factory=list)
    fed: int = 0

    @property
    def length(self) -> int:
        return len(self.lead) + len(self.completion.tokens)

    def tokens(self, start: int, stop: int) -> list[int]:
        lead = self.lead[start:stop]
        skipped = len(self.lead)
        return lead + self.completion.tokens[max(0, start - skipped) : max(0, stop - skipped)]


class Decoding:
    """Answers under way: `add` prompts, `step` until none is `active`. How each is decoded: see `decode`.

    pooled: prompts may be added while others are under way, one answer to each; for those who run for long.

    rows: each place of the memory and the answer in it, None where there is none (any more).
    """

    def __init__(
        self, ready: Inference, *, end: int, max_tokens: int, guide: Guide | None = None, temperature: float = 0.0,
        generator: torch.Generator | None = None, ratings: Ratings | None = None, pooled: bool = False,
    ):  # fmt: skip
        self.ready, self.device = ready, ready.model.device
        self.end, self.max_tokens, self.guide, self.ratings = end, max_tokens, guide, ratings
        self.temperature, self.generator = temperature, generator
        self.rows: list[_Row | None] = []
        self.active: list[_Row] = []  # in the order of the rows
        self.hidden: Tensor = torch.empty(0)  # (active, D): what comes next is made of it
        self._memory: Memory | None = None
        self._pool = Pool(self.device) if pooled else None

    # --- what comes and goes ----------------------------------------------------------------------------------------

    def add(
        self,
        prompts: Sequence[Sequence[int]],
        answers: int = 1,
        *,
        begun: Sequence[Sequence[int]] | None = None,
        together: bool = False,
    ) -> list[Completion]:
        """Begins `answers` answers to each prompt; the completions, which `step` writes on.

        While others are under way, only where they are pooled. together: what all prompts begin
        with is one prompt in the memory, read once for all answers, and the rest of each is fed to its answers: for
        prompts that differ in little, and with nothing else under way.
        """
        if not self.active:
            self.rows, self._memory, self.hidden = [], None, torch.empty(0)
        assert self._pool is None or (not together and answers == 1 and not self.ready.states)
        assert self._pool is not None or self._memory is None
        if states := self.ready.states:
            states.answers = [[] for _ in range(len(prompts) * answers)]
        leads: list[list[int]] = [[] for _ in prompts]
        per = answers
        if together and (common := common_beginning(prompts)):
            leads = [list(prompt[common:]) for prompt in prompts]
            prompts, per = [prompts[0][:common]], answers * len(prompts)
        memory = Memory(torch.tensor([len(p) for p in prompts], device=self.device), per)
        hidden = self._prefill(memory, prompts).repeat_interleave(per, 0)
        first = max((row.number for row in self.active), default=-1) + 1
        new = [
            _Row(first + i, Completion(), self.guide.follow() if self.guide else None, leads[i // answers])
            for i in range(len(leads) * answers)
        ]
        known = dict(zip(map(id, [*self.active, *new]), [*self.hidden, *hidden], strict=True))
        self._seat(memory, new)
        self.active = [row for row in self.rows if row is not None]
        self.hidden = torch.stack([known[id(row)] for row in self.active])
        for i, row in enumerate(new if begun else ()):
            tokens = list(begun[i // answers])  # type: ignore[index]
            row.completion.add(tokens, chosen=False)
            if row.path and tokens:
                row.path.take(tokens)
        if together or begun:
            self._feed(known)
        return [row.completion for row in new]

    def _seat(self, memory: Memory, new: list[_Row]) -> None:
        """Puts answers and their prompts into places that are free, or behind the last."""
        if self._pool is None:
            self._memory, self.rows = memory, list(new)
            return
        free = [place for place, row in enumerate(self.rows) if row is None]
        places = [*free, *range(len(self.rows), len(self.rows) + len(new))][: len(new)]
        self._pool.insert(memory, places)
        self._memory = self._pool
        self.rows += [None] * (len(self._pool.lengths) - len(self.rows))
        for place, row in zip(places, new, strict=True):
            self.rows[place] = row

    def leave(self, completion: Completion) -> None:
        """Ends an answer before its end."""
        kept = [j for j, row in enumerate(self.active) if row.completion is not completion]
        self.rows = [None if row and row.completion is completion else row for row in self.rows]
        self.hidden, self.active = self.hidden[kept], [self.active[j] for j in kept]
        if self._pool is not None:
            self._keep()

    def _drop_finished(self) -> None:
        self.rows = [
            None if row and (row.completion.finished or len(row.completion.tokens) >= self.max_tokens) else row
            for row in self.rows
        ]
        if self._pool is not None:
            self._keep()
        elif any(self.rows):
            self._compact()
        self.active = [row for row in self.rows if row]

    def _keep(self) -> None:
        """Tells the pool which places are in use."""
        assert self._pool is not None
        used = [place for place, row in enumerate(self.rows) if row]
        if used:
            self._pool.keep(used)
            self.rows = self.rows[: used[-1] + 1]

    def _compact(self) -> None:
        """Takes places without an answer out of the memory, when that makes it a quarter smaller."""
        assert self._memory
        per = self._memory.per
        groups = [self.rows[k : k + per] for k in range(0, len(self.rows), per)]
        kept = [k for k, group in enumerate(groups) if any(group)]
        fewer = max((sum(row is not None for row in groups[k]) for k in kept), default=0)
        if 4 * len(kept) * fewer > 3 * len(self.rows):
            return
        old: list[int] = []
        for k in kept:  # the active rows of a group first, then any to fill its places
            places = sorted(range(k * per, k * per + per), key=lambda j: self.rows[j] is None)
            old += places[:fewer]
        self._memory.arrange(
            torch.tensor(kept, device=self.device), fewer, torch.tensor(old, device=self.device)
        )  # fmt: skip
        self.rows = [self.rows[j] for j in old]

    # --- what they write --------------------------------------------------------------------------------------------

    def step(self) -> None:
        """The next token of every active answer, and what is forced around it. Places of answers that end are free for
        the next `add`."""
        if not self.active:
            return
        if self.ratings:
            self._weigh(self.ratings)
        self._extend()
        self._drop_finished()
        self._feed()

    def _prefill(self, memory: Memory, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Computes the prompts, what they all begin with just once; the last hidden state of each, (prompts, D)."""
        common = common_beginning(prompts)
        ids = [*prompts[0][:common], *(token for prompt in prompts for token in prompt[common:])]
        own = [len(p) - common for p in prompts]
        lengths, parents = ([common, *own], [-1] + [0] * len(own)) if common else (own, [-1] * len(own))
        tree = Prefill(memory, lengths, parents, self.device)
        last = torch.tensor(tree.starts[len(lengths) - len(own) + 1 :], device=self.device) - 1
        hidden = self.ready.forward(ids, tree, last)
        if states := self.ready.states:
            x = self.ready.seen.pop()
            first = len(lengths) - len(own)
            states.prompts = [torch.cat([x[place] for place in tree.line(i)]) for i in range(first, len(lengths))]
        return hidden

    def _extend(self) -> None:
        """Samples or forces what comes next in every active answer."""
        # Where an answer begins with forced tokens, the policy has no say yet.
        choosing = [j for j, row in enumerate(self.active) if not (row.path and self._force(row))]
        if choosing:
            bits = np.stack([self.active[j].path.allowed() for j in choosing]) if self.guide else None  # type: ignore[union-attr]
            ready = self.ready
            chosen = _choose(
                ready.head, ready.project, self.hidden[choosing], bits, self.temperature, self.generator
            )  # fmt: skip
            for j, token, log_prob in zip(choosing, *chosen, strict=True):
                row = self.active[j]
                row.completion.add([token], chosen=True, log_prob=log_prob)
                if row.path:
                    row.path.take([token])
                    self._force(row)
        for row in self.active:
            if not row.path:
                row.completion.finished = row.completion.tokens[-1] == self.end
            elif row.path.done:
                row.completion.add([self.end], chosen=False)
                row.completion.finished = True

    @staticmethod
    def _force(row: _Row) -> bool:
        """Appends the tokens that must come next; whether there were any."""
        assert row.path
        forced = row.path.forced()
        if forced:
            row.completion.add(forced, chosen=False)
            row.path.take(forced)
        return bool(forced)

    def _weigh(self, ratings: Ratings) -> None:
        """Notes how probable each rating is, in answers that stand before theirs."""
        due = [j for j, row in enumerate(self.active) if ratings.due(row.completion.tokens)]
        if not due:
            return
        head, memory = self.ready.head, self._memory
        assert memory
        places = [j for j, row in enumerate(self.rows) if row]

        def score(hidden: Tensor, tokens: list[int]) -> Tensor:
            if type(head) is not nn.Linear:
                return at_least_float32(self.ready.project(hidden))[:, tokens]
            return at_least_float32(
                F.linear(hidden, head.weight[tokens], None if head.bias is None else head.bias[tokens])
            )

        def follow(tokens: tuple[int, ...]) -> Tensor:
            """What is written into the memory here is overwritten by what the answer goes on with."""
            fed = [self.active[j].fed for j in due]
            row = torch.tensor([places[j] for j in due for _ in tokens], device=self.device)
            slot = torch.tensor([at + k for at in fed for k in range(len(tokens))], device=self.device)
            column = torch.arange(len(tokens), device=self.device).repeat(len(due))
            last = torch.arange(1, len(due) + 1, device=self.device) * len(tokens) - 1
            return self.ready.forward(list(tokens) * len(due), Step(memory, row, slot, column, len(tokens)), last)

        chances = ratings.weigh(self.hidden[due], score, follow)
        for j, given in zip(due, chances.tolist(), strict=True):
            completion = self.active[j].completion
            completion.ratings, completion.rating_at = given, len(completion.tokens)

    def _feed(self, known: Mapping[int, Tensor] | None = None) -> None:
        """Runs the newest tokens of every active answer, a portion of them at a time. known: the states of answers that
        may have none."""
        hidden = dict(known or {})
        while self.active and self._memory:
            row: list[int] = []
            slot: list[int] = []
            column: list[int] = []
            ids: list[int] = []
            last: list[int] = []
            fed: list[_Row] = []
            for j, answer in enumerate(self.rows):
                if answer is None or answer.fed == answer.length:
                    continue
                new = range(answer.fed, min(answer.length, answer.fed + WIDTH))
                row += [j] * len(new)
                slot += new
                column += range(len(new))
                ids += answer.tokens(new.start, new.stop)
                last.append(len(ids) - 1)
                fed.append(answer)
                answer.fed = new.stop
            if not fed:
                break
            row_t, slot_t, column_t, last_t = (torch.tensor(x, device=self.device) for x in (row, slot, column, last))
            out = self.ready.forward(ids, Step(self._memory, row_t, slot_t, column_t, max(column) + 1), last_t)
            hidden.update(zip(map(id, fed), out, strict=True))
            if self.ready.states:
                ends = [0, *(x + 1 for x in last)]
                states = self.ready.seen.pop()
                for answer, start, stop in zip(fed, ends, ends[1:], strict=False):
                    self.ready.states.answers[answer.number].append(states[start:stop])
        if self.active:
            self.hidden = torch.stack([hidden[id(answer)] for answer in self.active])


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
