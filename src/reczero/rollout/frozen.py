"""Blocks below the lowest trained weight: what they make of a token never changes, so it is made once.

The decoder has run every token of prompts and answers through them already. `States` keeps what came out; the update
starts from there (`above`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class States:
    """What enters block `first` of the decoder, for every token of prompts and answers: (tokens, D) each."""

    def __init__(self, first: int):
        self.first = first
        self.prompts: list[Tensor] = []
        self.answers: list[list[Tensor]] = []  # an answer's pieces; its last token, which nothing follows, has none

    def answer(self, row: int, tokens: int) -> Tensor:
        """(tokens, D): of the first tokens of an answer."""
        return torch.cat(self.answers[row])[:tokens]

    @contextmanager
    def watched(self, model: PreTrainedModel) -> Iterator[list[Tensor]]:
        """Inside, every forward pass appends (N, D) to the list."""
        seen: list[Tensor] = []
        block = model.get_decoder().layers[self.first]
        hook = block.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"])[0].detach()),
            with_kwargs=True,
        )
        try:
            yield seen
        finally:
            hook.remove()


@contextmanager
def above(model: PreTrainedModel, first: int) -> Iterator[None]:
    """Inside, the blocks before `first` pass on what they are given: call the model with `inputs_embeds=` states."""
    below = model.get_decoder().layers[:first]
    for block in below:
        block.forward = _passes_on
    try:
        yield
    finally:
        for block in below:
            del block.forward


def _passes_on(hidden_states: Tensor, *_, **__) -> Tensor:
    return hidden_states


@torch.no_grad()
def frozen_blocks(model: PreTrainedModel) -> int:
    """How many of the lowest blocks can be left out of the update: all that is in and below them is frozen.

    0 where a model does more to its embeddings than its blocks see (some scale them), found by trying.
    """
    blocks = getattr(model.get_decoder(), "layers", ())
    if any(p.requires_grad for p in model.get_input_embeddings().parameters()):
        return 0
    first = next((i for i, block in enumerate(blocks) if _moves(block)), 0)
    if first == 0:
        return 0
    ids = torch.arange(1, 5, device=model.device)[None]
    was_training = model.training
    model.eval()
    try:
        states = States(first)
        with states.watched(model) as seen:
            want = model(input_ids=ids, use_cache=False).logits
        with above(model, first):
            got = model(inputs_embeds=seen[0][None], use_cache=False).logits
    finally:
        model.train(was_training)
    return first if torch.equal(got, want) else 0


def _moves(block: nn.Module) -> bool:
    """Whether a block's output may change: it learns, or drops out at random."""
    return any(p.requires_grad for p in block.parameters()) or any(
        isinstance(m, nn.Dropout) and m.p > 0 for m in block.modules()
    )
