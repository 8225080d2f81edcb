"""Many answers to many prompts: every distinct prompt is computed once, all answers are decoded together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from .guidance import Guide, Path, widen
from .shared_prefix import Memory, Prefill, Step, shared_prefix_attention


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

    def add(self, tokens: Sequence[int], chosen: bool, log_prob: float = 0.0) -> None:
        self.tokens += tokens
        self.chosen += [chosen] * len(tokens)
        self.log_probs += [log_prob] * len(tokens)


@torch.no_grad()
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
) -> list[list[Completion]]:
    """`answers` completions of each prompt (token ids), greedy at temperature 0, else sampled.

    A free answer ends with the token `end` or unfinished after `max_tokens`; a guided one ends where its grammar ends,
    and then gets `end` as a forced token. Rows that are finished cost nothing more.
    """
    device = next(model.parameters()).device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    completions = [Completion() for _ in range(len(prompts) * answers)]
    paths: list[Path | None] = [guide.follow() if guide else None for _ in completions]
    memory = Memory(lengths, answers, max_tokens)
    was_training = model.training
    model.eval()
    try:
        with shared_prefix_attention(model):
            logits = _prefill(model, prompts, memory, device).repeat_interleave(answers, 0)
            active = list(range(len(completions)))  # the answer that each row of `logits` belongs to
            while active:
                active, fed = _advance(logits, active, completions, paths, end, max_tokens, temperature, generator)
                if active:
                    logits = _feed(model, memory, completions, active, fed, device)
    finally:
        model.train(was_training)
    return [completions[i : i + answers] for i in range(0, len(completions), answers)]


def _prefill(model, prompts: Sequence[Sequence[int]], memory: Memory, device: torch.device) -> Tensor:
    """Computes the prompts, what they all begin with only once; logits (prompts, vocabulary) of what comes next."""
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.as_tensor(prompt, device=device)
    shared = 0
    if len(prompts) > 1:
        differs = (ids != ids[0]).any(0).nonzero()
        shortest = min(len(p) for p in prompts) - 1  # every prompt keeps a token of its own, to predict from
        shared = min(int(differs[0]) if len(differs) else shortest, shortest)
    positions = torch.arange(longest, device=device)[None]
    call = {"use_cache": False, "return_dict": True}
    if shared:
        model(
            input_ids=ids[:1, :shared], position_ids=positions[:, :shared], logits_to_keep=1,
            layout=Prefill(memory), **call,
        )  # fmt: skip
    # Only the last real position of each prompt needs the vocabulary: as many positions as there are distinct lengths.
    kept, where = (memory.lengths - 1 - shared).unique(return_inverse=True)
    logits = model(
        input_ids=ids[:, shared:], position_ids=positions[:, shared:].expand(len(prompts), -1), logits_to_keep=kept,
        layout=Prefill(memory, shared), **call,
    ).logits  # fmt: skip
    return logits[torch.arange(len(prompts), device=device), where].float()


def _advance(logits, active, completions, paths, end, max_tokens, temperature, generator):
    """Samples or forces what comes next in every active answer; row j of `logits` belongs to answer `active[j]`.

    Returns (the answers that are still active, how many new tokens each of them has).
    """
    before = {i: len(completions[i].tokens) for i in active}
    # Where an answer begins with forced tokens, the policy has no say yet.
    choosing = [j for j, i in enumerate(active) if paths[i] is None or not _force(completions[i], paths[i])]
    if choosing:
        scores = logits[choosing]
        if paths[active[choosing[0]]] is not None:
            allowed = np.stack([paths[active[j]].allowed() for j in choosing])
            scores = scores.masked_fill(~widen(allowed, scores.shape[1], scores.device), float("-inf"))
        for j, token, log_prob in zip(choosing, *_sample(scores, temperature, generator), strict=True):
            completion, path = completions[active[j]], paths[active[j]]
            completion.add([token], chosen=True, log_prob=log_prob)
            if path is not None:
                path.take([token])
                _force(completion, path)
    for i in active:
        completion, path = completions[i], paths[i]
        if path is None:
            completion.finished = completion.tokens[-1] == end
        elif path.done:
            completion.add([end], chosen=False)
            completion.finished = True
    active = [i for i in active if not completions[i].finished and len(completions[i].tokens) < max_tokens]
    return active, [len(completions[i].tokens) - before[i] for i in active]


def _force(completion: Completion, path: Path) -> bool:
    """Appends the tokens that must come next; whether there were any."""
    forced = path.forced()
    if forced:
        completion.add(forced, chosen=False)
        path.take(forced)
    return bool(forced)


def _sample(scores: Tensor, temperature: float, generator) -> tuple[list[int], list[float]]:
    """scores (n, vocabulary) -> tokens, and their log-probabilities."""
    if temperature == 0:
        log_probs = scores.log_softmax(-1)
        tokens = scores.argmax(-1)
    else:
        log_probs = (scores / temperature).log_softmax(-1)
        # Inverse of the cumulated distribution, in float64: one pass, and far cheaper than torch.multinomial here.
        total = log_probs.double().exp_().cumsum_(-1)
        draw = torch.rand(len(scores), 1, dtype=torch.float64, generator=generator, device=scores.device)
        tokens = torch.searchsorted(total, draw * total[:, -1:], right=True)[:, 0].clamp_(max=scores.shape[1] - 1)
    return tokens.tolist(), log_probs.gather(1, tokens[:, None])[:, 0].tolist()


def _feed(model, memory, completions, active, fed, device) -> Tensor:
    """Runs the newest `fed[j]` tokens of each active answer j; logits (active, vocabulary) of what comes next."""
    row: list[int] = []
    slot: list[int] = []
    column: list[int] = []
    ids: list[int] = []
    for i, new in zip(active, fed, strict=True):
        tokens = completions[i].tokens
        row += [i] * new
        slot += range(len(tokens) - new, len(tokens))
        column += range(new)
        ids += tokens[len(tokens) - new :]
    row_t, slot_t, column_t = (torch.tensor(x, device=device) for x in (row, slot, column))
    positions = memory.lengths.repeat_interleave(memory.answers)[row_t] + slot_t
    last = torch.tensor(fed, device=device).cumsum(0) - 1
    step = Step(memory, row_t, slot_t, column_t, max(fed))
    return (
        model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=last,
            layout=step,
        )
        .logits[0]
        .float()
    )
