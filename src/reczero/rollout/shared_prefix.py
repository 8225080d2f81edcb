"""Attention in which many answers share one computed prompt, through transformers' attention interface.

A prompt of P tokens answered G times with R tokens each costs P + G·R tokens instead of G·(P + R); the result is the
same. `attend` is registered under the name `shared_prefix`; a model called inside `shared_prefix_attention(model)` with
a keyword `layout=` hands every layer's queries, keys and values to that layout:

- `PackedGroup`: one row `[prompt, answer 1, …, answer G]` with gradient, for the update;
- `Prefill` and `Step`: the prompt once, then the new tokens of all answers at once, for decoding.

Shapes: N tokens in the packed row, H query heads, K key/value heads, D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

NAME = "shared_prefix"


def attend(module, query, key, value, attention_mask, *, layout, scaling=None, sliding_window=None, **_):
    """The function transformers calls in every layer. (1, H, N, D) -> (1, N, H, D)"""
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    return layout.attend(module.layer_idx, query, key, value, scaling, sliding_window), None


AttentionInterface.register(NAME, attend)


def can_share(model: PreTrainedModel) -> bool:
    """Whether every layer of `model` goes through the attention interface with plain softmax attention."""
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return bool(model._supports_sdpa) and kinds <= {"full_attention", "sliding_attention"} and not capped


@contextmanager
def shared_prefix_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` must be called with `layout=`; afterwards it attends as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """(B, H, T, D) x (B, K, S, D) -> (B, H, T, D); the bool mask (T, S) says what is seen, None is plain causal."""
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )


@dataclass
class PackedGroup:
    """The packed row of one group: a prompt of `prompt` tokens, then `answers` answers of `length` tokens (padded)."""

    prompt: int
    answers: int
    length: int
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def positions(self, device: torch.device) -> Tensor:
        """(1, N): every answer goes on where the prompt ends."""
        own = torch.arange(self.prompt, self.prompt + self.length, device=device).repeat(self.answers)
        return torch.cat([torch.arange(self.prompt, device=device), own])[None]

    def _mask(self, window: int | None, device: torch.device) -> Tensor:
        """bool (length, prompt + length): which keys each token of an answer sees."""
        if window not in self._masks:
            shape = (self.length, self.prompt + self.length)
            mask = torch.ones(shape, dtype=torch.bool, device=device).tril(self.prompt)
            self._masks[window] = mask if window is None else mask.triu(self.prompt + 1 - window)
        return self._masks[window]

    def attend(self, _layer: int, query, key, value, scaling: float, window: int | None) -> Tensor:
        cut, count, length = self.prompt, self.answers, self.length

        def unpack(x: Tensor) -> Tensor:  # (1, heads, N, D) -> (answers, heads, length, D)
            return x[0, :, cut:].unflatten(1, (count, length)).transpose(0, 1)

        within = None
        if window is not None and window < cut:
            within = torch.ones(cut, cut, dtype=torch.bool, device=query.device).tril().triu(1 - window)
        prompt = _attention(query[:, :, :cut], key[:, :, :cut], value[:, :, :cut], scaling, within)
        answers = _attention(
            unpack(query),
            torch.cat([key[:, :, :cut].expand(count, -1, -1, -1), unpack(key)], 2),
            torch.cat([value[:, :, :cut].expand(count, -1, -1, -1), unpack(value)], 2),
            scaling,
            self._mask(window, query.device),
        )
        return torch.cat([prompt[0], answers.transpose(0, 1).flatten(1, 2)], 1).transpose(0, 1)[None]


@dataclass
class Memory:
    """Keys and values of prompts (once each) and of the answers to them, `answers` to a prompt, for every layer."""

    lengths: Tensor  # (prompts,)
    answers: int
    capacity: int
    prompt: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # layer -> 2 x (prompts, K, longest, D)
    own: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # layer -> 2 x (answers in all, K, capacity, D)


@dataclass
class Prefill:
    """The prompts, padded on the right (which a causal mask hides); their keys and values go to `memory`.

    What they all begin with is computed once, in a first pass of one row; `shared` is its length in the second pass,
    which brings the rest of every prompt.
    """

    memory: Memory
    shared: int = 0
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def _mask(self, window: int | None, length: int, device: torch.device) -> Tensor:
        """bool (length, shared + length)."""
        if window not in self._masks:
            mask = torch.ones(length, self.shared + length, dtype=torch.bool, device=device).tril(self.shared)
            self._masks[window] = mask if window is None else mask.triu(self.shared + 1 - window)
        return self._masks[window]

    def attend(self, layer: int, query, key, value, scaling: float, window: int | None) -> Tensor:
        if self.shared:
            before = (x.expand(len(key), -1, -1, -1) for x in self.memory.prompt[layer])
            key, value = (torch.cat([x, y], 2) for x, y in zip(before, (key, value), strict=True))
        self.memory.prompt[layer] = (key, value)
        plain = not self.shared and window is None
        mask = None if plain else self._mask(window, query.shape[2], query.device)
        return _attention(query, key, value, scaling, mask).transpose(1, 2)


@dataclass
class Step:
    """The new tokens of all answers in one packed row, however many each has: no padding in any matrix product.

    row, slot: (N,) which answer a token belongs to, and its place in that answer; column: (N,) its place among the new
    tokens of that answer; width: the most new tokens of any answer.
    """

    memory: Memory
    row: Tensor
    slot: Tensor
    column: Tensor
    width: int
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def _mask(self, window: int | None, rows: int, longest: int, used: int) -> Tensor:
        """Additive (rows, width, longest + used) mask: what each new token may not see is -inf."""
        if window not in self._masks:
            lengths = self.memory.lengths.repeat_interleave(self.memory.answers)[:, None]  # (rows, 1)
            device = lengths.device
            place = torch.zeros(rows, self.width, dtype=torch.long, device=device)
            place[self.row, self.column] = self.slot
            key = torch.arange(longest, device=device)[None]
            position = torch.cat([key.expand(rows, -1), lengths + torch.arange(used, device=device)], 1)[:, None]
            real = torch.cat([key < lengths, torch.ones(rows, used, dtype=torch.bool, device=device)], 1)[:, None]
            at = (lengths + place)[..., None]
            seen = real & (position <= at)
            if window is not None:
                seen &= position > at - window
            self._masks[window] = torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))
        return self._masks[window]

    def attend(self, layer: int, query, key, value, scaling: float, window: int | None) -> Tensor:
        """The scores against the prompts are one product a prompt: its keys are read once for all its answers."""
        memory, width = self.memory, self.width
        prompt_key, prompt_value = memory.prompt[layer]
        if layer not in memory.own:
            shape = (len(prompt_key) * memory.answers, key.shape[1], memory.capacity, key.shape[3])
            memory.own[layer] = (key.new_zeros(shape), value.new_zeros(shape))
        own_key, own_value = memory.own[layer]
        own_key[self.row, :, self.slot] = key[0].transpose(0, 1)
        own_value[self.row, :, self.slot] = value[0].transpose(0, 1)
        used = int(self.slot.max()) + 1
        prompts, heads, longest, size = prompt_key.shape
        rows, per = own_key.shape[0], memory.answers
        repeat = query.shape[1] // heads

        padded = query.new_zeros(rows, width, query.shape[1], size)
        padded[self.row, self.column] = query[0].transpose(0, 1)
        # (rows, width, H, D) -> (prompts, K, per · width · repeat, D), and back for what hangs on the last axis
        folded = padded.view(prompts, per * width, heads, repeat, size).transpose(1, 2).flatten(2, 3)
        by_row = (
            folded.reshape(prompts, heads, per, width * repeat, size)
            .transpose(1, 2)
            .reshape(rows, heads, width * repeat, size)
        )

        def to_rows(x: Tensor) -> Tensor:  # (prompts, K, per · width · repeat, X) -> (rows, K, width · repeat, X)
            return x.unflatten(2, (per, width * repeat)).transpose(1, 2).flatten(0, 1)

        scores = torch.cat(
            [to_rows(folded @ prompt_key.transpose(2, 3)), by_row @ own_key[:, :, :used].transpose(2, 3)], 3
        )
        mask = self._mask(window, rows, longest, used)  # (rows, width, longest + used)
        scores = scores.float().mul_(scaling).view(rows, heads, width, repeat, -1) + mask[:, None, :, None]
        weights = scores.softmax(-1).to(value.dtype).view(rows, heads, width * repeat, -1)
        shared = weights[..., :longest].unflatten(0, (prompts, per)).transpose(1, 2).flatten(2, 3)
        out = to_rows(shared @ prompt_value) + weights[..., longest:] @ own_value[:, :, :used]
        out = out.view(rows, heads, width, repeat, size).permute(0, 2, 1, 3, 4).flatten(2, 3)  # (rows, width, H, D)
        return out[self.row, self.column][None]
