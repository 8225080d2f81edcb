"""Attention in which many answers share one computed prompt, through transformers' attention interface.

A prompt of P tokens answered G times with R tokens each costs P + G·R tokens instead of G·(P + R); the result is the
same. `attend` is registered under the name `shared_prefix`; a model called inside `shared_prefix_attention(model)` with
a keyword `layout=` hands every layer's queries, keys and values to that layout:

- `Tree`: one packed row without padding, what prompts begin with, prompts and answers, with gradient: for the update,
  and to compute prompts for the decoder (which then keeps their keys and values in a `Memory`);
- `Step`: the new tokens of all answers at once, for decoding.

Shapes: N tokens in the packed row, H query heads, K key/value heads, D head size.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from .head import at_least_float32

NAME = "shared_prefix"


def attend(module, query, key, value, attention_mask, *, layout, scaling=None, sliding_window=None, **_):
    """The function transformers calls in every layer. (1, H, N, D) -> (1, N, H, D)"""
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    if query.dtype != value.dtype:  # under autocast, turned queries and keys are float32 again
        query, key = query.to(value.dtype), key.to(value.dtype)
    return layout.attend(module.layer_idx, query, key, value, scaling, sliding_window), None


AttentionInterface.register(NAME, attend)

STEP = 128  # tokens by which a pool's places grow
_DEAF = {"nemotron"}  # their blocks do not hand `layout` on to the attention, whatever they say
# Changes that some models make to the head's logits, and the value at which they change nothing.
_HEAD_CHANGES = {
    "final_logit_softcapping": None, "logit_scale": 1.0, "output_multiplier": 1.0, "lm_head_multiplier": 1.0,
    "logits_scaling": 1.0,
}  # fmt: skip


def cannot_share(model: PreTrainedModel) -> str | None:
    """Why answers of `model` can't share a computed prompt; None when they can.

    They can where every layer goes through the attention interface with plain softmax attention (windows included),
    and the logits are what the head says.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if not model._supports_sdpa or not model._supports_attention_backend or config.model_type in _DEAF:
        return "its attention does not go through transformers' attention interface"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention caps its scores"
    if getattr(config, "attention_dropout", None):
        return "its attention drops out at random"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention looks ahead"
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        return "its attention has sinks"
    if '"rope_type": "dynamic"' in (text := json.dumps(config.to_dict(), default=str)) or '"longrope"' in text:
        return "its positions depend on the longest row of a batch"
    if getattr(config, "output_router_logits", False):
        return "its router has a loss of its own"
    for name, nothing in _HEAD_CHANGES.items():
        if getattr(config, name, None) not in (None, nothing):
            return f"its logits are changed by {name}"
    return None


@contextmanager
def shared_prefix_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` must be called with `layout=`; afterwards it attends as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class Tree:
    """A packed row of segments. Each goes on where its parent ends, and sees its ancestors and what it has itself.

    lengths: tokens of every segment; parents: the index of an earlier segment, or -1. Siblings stand side by side.
    """

    def __init__(self, lengths: Sequence[int], parents: Sequence[int], device: torch.device):
        self.device = device
        self.lengths, self.parents = list(lengths), list(parents)
        self.starts = [0]
        for length in self.lengths:
            self.starts.append(self.starts[-1] + length)
        depth: list[int] = []  # tokens before each segment's first
        for parent in self.parents:
            depth.append(0 if parent < 0 else depth[parent] + self.lengths[parent])
        spans = [torch.arange(d, d + n) for d, n in zip(depth, self.lengths, strict=True)]
        self.positions = torch.cat(spans).to(device)[None]  # (1, N)
        self._families: list[_Family] = []
        for parent, members in groupby(range(len(self.lengths)), key=lambda i: self.parents[i]):
            chosen = list(members)
            self._families.append(_Family(self, parent, chosen, 0 if parent < 0 else depth[chosen[0]]))

    def place(self, segment: int) -> slice:
        """Where a segment stands in the row."""
        return slice(self.starts[segment], self.starts[segment + 1])

    def line(self, segment: int) -> list[slice]:
        """The places of a segment and all its ancestors, oldest first; none for -1."""
        places: list[slice] = []
        while segment >= 0:
            places.insert(0, self.place(segment))
            segment = self.parents[segment]
        return places

    def attend(self, _layer: int, query, key, value, scaling: float, window: int | None) -> Tensor:
        return torch.cat([f.attend(query, key, value, scaling, window) for f in self._families])[None]


class _Family:
    """Siblings of a tree: b segments, padded to the longest of T tokens, with A tokens of ancestors before each."""

    def __init__(self, tree: Tree, parent: int, members: list[int], before: int):
        self.ancestors, self.before, self.device = tree.line(parent), before, tree.device
        self.place = slice(tree.starts[members[0]], tree.starts[members[-1] + 1])
        self.lengths = [tree.lengths[i] for i in members]
        self.longest = max(self.lengths)
        self._masks: dict[int | None, Tensor] = {}
        self._spread: Tensor | None = None
        if min(self.lengths) < self.longest:
            starts = torch.tensor([tree.starts[i] for i in members])[:, None]
            lengths = torch.tensor(self.lengths)[:, None]
            own = torch.arange(self.longest)[None]
            # A padding place holds some real token: no one sees it, for it comes later, and what it sees is dropped.
            self._spread = (starts + own.minimum(lengths - 1)).flatten().to(tree.device)
            self._gather = (own < lengths).flatten().nonzero()[:, 0].to(tree.device)

    def _unpack(self, x: Tensor) -> Tensor:
        """(1, heads, N, D) -> (b, heads, T, D)"""
        rows = x[0, :, self.place] if self._spread is None else x[0].index_select(1, self._spread)
        return rows.unflatten(1, (len(self.lengths), self.longest)).transpose(0, 1)

    def _mask(self, window: int | None, skipped: int) -> Tensor:
        """bool (T, A - skipped + T): which keys each token sees."""
        if window not in self._masks:
            before = self.before - skipped
            mask = torch.ones(self.longest, before + self.longest, dtype=torch.bool, device=self.device).tril(before)
            self._masks[window] = mask if window is None else mask.triu(before + 1 - window)
        return self._masks[window]

    def attend(self, query, key, value, scaling: float, window: int | None) -> Tensor:
        """-> (tokens of this family, H, D)"""
        skipped = 0 if window is None else max(0, self.before + 1 - window)  # ancestors that no one here can see
        own_key, own_value = self._unpack(key), self._unpack(value)
        if skipped < self.before:

            def seen(x: Tensor, own: Tensor) -> Tensor:
                before = torch.cat([x[:, :, place] for place in self.ancestors], 2)[:, :, skipped:]
                return torch.cat([before.expand(len(own), -1, -1, -1), own], 2)

            own_key, own_value = seen(key, own_key), seen(value, own_value)
        plain = skipped == self.before and (window is None or window >= self.longest)
        out = F.scaled_dot_product_attention(
            self._unpack(query), own_key, own_value, attn_mask=None if plain else self._mask(window, skipped),
            is_causal=plain, scale=scaling, enable_gqa=True,
        )  # fmt: skip
        out = out.transpose(1, 2).flatten(0, 1)  # (b · T, H, D)
        return out if self._spread is None else out.index_select(0, self._gather)


@dataclass
class Memory:
    """Keys and values of every layer: of prompts, once each, and of the answers to them, `per` places to a prompt.

    The places of answers are rows; `arrange` takes those that are finished out.
    """

    lengths: Tensor  # (prompts,)
    per: int
    prompt: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # layer -> 2 x (prompts, K, longest, D)
    own: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # layer -> 2 x (rows, K, room, D)

    def room(self, layer: int, slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the answers in a layer, with room for `slots` tokens of each."""
        kept = self.own.get(layer)
        if kept is None or kept[0].shape[2] < slots:
            rows, room = len(self.lengths) * self.per, slots + slots // 2 + 16
            grown = tuple(x.new_zeros(rows, x.shape[1], room, x.shape[3]) for x in self.prompt[layer])
            for old, new in zip(kept or (), grown, strict=False):
                new[:, :, : old.shape[2]] = old
            self.own[layer] = kept = grown
        return kept

    def arrange(self, prompts: Tensor, per: int, rows: Tensor) -> None:
        """Keeps just these prompts, and rows (len(prompts) · per,)."""
        self.lengths, self.per = self.lengths[prompts], per
        longest = int(self.lengths.max())
        for layer, pair in self.prompt.items():
            self.prompt[layer] = tuple(x[prompts][:, :, :longest] for x in pair)
        for layer, pair in self.own.items():
            self.own[layer] = tuple(x[rows] for x in pair)


class Pool(Memory):
    """A memory whose places are used again and again, one answer each: prompts come and go, and nothing is moved.

    What is kept is larger than what is shown: `lengths`, `prompt` and `own` are views of the places up to the last that
    is in use, and of no more tokens than its prompts have. It grows in few steps and never shrinks, so that a process
    that runs for weeks takes no more memory than in its busiest moment.
    """

    def __init__(self, device: torch.device):
        super().__init__(torch.ones(0, dtype=torch.long, device=device), 1)
        self._lengths = self.lengths
        self._prompt: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: dict[int, tuple[Tensor, Tensor]] = {}

    def insert(self, other: Memory, places: Sequence[int]) -> None:
        """Takes in prompts, each at a place that is free, or behind the last."""
        if (needed := max(places) + 1) > len(self._lengths):
            more = max(needed, 2 * len(self._lengths)) - len(self._lengths)
            self._lengths = torch.cat([self._lengths, self._lengths.new_ones(more)])
        at = torch.tensor(places, device=self._lengths.device)
        self._lengths[at] = other.lengths
        for layer, given in other.prompt.items():
            slots = given[0].shape[2]
            kept = self._prompt.get(layer) or tuple(x[:0] for x in given)
            self._prompt[layer] = tuple(self._grown(x, slots) for x in kept)
            for x, y in zip(self._prompt[layer], given, strict=True):
                x[at, :, :slots] = y
        self._show(max(needed, len(self.lengths)))

    def keep(self, places: Sequence[int]) -> None:
        """Only these are in use any more."""
        unused = torch.ones_like(self._lengths, dtype=torch.bool)
        unused[torch.tensor(places, device=unused.device)] = False
        self._lengths[unused] = 1
        self._show(max(places) + 1)

    def room(self, layer: int, slots: int) -> tuple[Tensor, Tensor]:
        kept = self._own.get(layer) or tuple(x[:0, :, :0] for x in self._prompt[layer])
        if kept[0].shape[0] < len(self._lengths) or kept[0].shape[2] < slots:
            self._own[layer] = tuple(self._grown(x, slots) for x in kept)
            self.own[layer] = tuple(x[: len(self.lengths)] for x in self._own[layer])
        return self.own[layer]

    def _grown(self, x: Tensor, slots: int) -> Tensor:
        return _grown(x, len(self._lengths), max(x.shape[2], -(-slots // STEP) * STEP))

    def _show(self, places: int) -> None:
        self.lengths = self._lengths[:places]
        longest = int(self.lengths.max())
        self.prompt = {layer: tuple(x[:places, :, :longest] for x in pair) for layer, pair in self._prompt.items()}
        self.own = {layer: tuple(x[:places] for x in pair) for layer, pair in self._own.items()}


def _fuses(x: Tensor) -> bool:
    """Whether torch's blockwise attention for CPUs, which hands out its log-sum-exp, takes these numbers."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _grown(x: Tensor, rows: int, slots: int) -> Tensor:
    """(a, K, b, D) -> (rows, K, slots, D), zeros where there was nothing; as it is where it has that shape."""
    if x.shape[0] == rows and x.shape[2] == slots:
        return x
    grown = x.new_zeros(rows, x.shape[1], slots, x.shape[3])
    grown[: x.shape[0], :, : x.shape[2]] = x
    return grown


class Prefill(Tree):
    """A tree whose last level are prompts; their keys and values, padded on the right, go to `memory`."""

    def __init__(self, memory: Memory, lengths: Sequence[int], parents: Sequence[int], device: torch.device):
        super().__init__(lengths, parents, device)
        self.memory = memory
        self._prompts = sorted(set(range(len(self.lengths))) - set(self.parents))

    def attend(self, layer: int, query, key, value, scaling: float, window: int | None) -> Tensor:
        longest = int(self.memory.lengths.max())

        def padded(x: Tensor) -> Tensor:
            out = x.new_zeros(len(self._prompts), x.shape[1], longest, x.shape[3])
            for row, prompt in zip(out, self._prompts, strict=True):
                whole = torch.cat([x[0, :, place] for place in self.line(prompt)], 1)
                row[:, : whole.shape[1]] = whole
            return out

        self.memory.prompt[layer] = (padded(key), padded(value))
        return super().attend(layer, query, key, value, scaling, window)


@dataclass
class Step:
    """The new tokens of all answers in one packed row, however many each has: no padding in any matrix product.

    row, slot: (N,) which row of the memory a token belongs to, and its place in that answer; column: (N,) its place
    among the new tokens of that answer; width: the most new tokens of any answer.
    """

    memory: Memory
    row: Tensor
    slot: Tensor
    column: Tensor
    width: int
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.used = int(self.slot.max()) + 1
        self.even = self.width == 1 and len(self.row) == len(self.memory.lengths) * self.memory.per  # a token a row
        self.positions = (self.memory.lengths[self.row // self.memory.per] + self.slot)[None]  # (1, N)

    def _mask(self, window: int | None, like: Tensor, longest: int) -> Tensor:
        """Additive (rows, 1, width, 1, longest + used) mask: what each new token may not see is -inf."""
        if window not in self._masks:
            lengths = self.memory.lengths.repeat_interleave(self.memory.per)[:, None]  # (rows, 1)
            rows, device = len(lengths), lengths.device
            place = torch.zeros(rows, self.width, dtype=torch.long, device=device)
            place[self.row, self.column] = self.slot
            key = torch.arange(longest, device=device)[None]
            own = lengths + torch.arange(self.used, device=device)
            position = torch.cat([key.expand(rows, -1), own], 1)[:, None]
            real = torch.cat([key < lengths, torch.ones_like(own, dtype=torch.bool)], 1)[:, None]
            at = (lengths + place)[..., None]
            seen = real & (position <= at)
            if window is not None:
                seen &= position > at - window
            mask = torch.zeros(seen.shape, device=device, dtype=like.dtype).masked_fill_(~seen, float("-inf"))
            self._masks[window] = mask[:, None, :, None]
        return self._masks[window]

    def attend(self, layer: int, query, key, value, scaling: float, window: int | None) -> Tensor:
        """The scores against the prompts are one product a prompt: its keys are read once for all its answers."""
        memory, width, used = self.memory, self.width, self.used
        prompt_key, prompt_value = memory.prompt[layer]
        own_key, own_value = memory.room(layer, used)
        own_key[self.row, :, self.slot] = key[0].transpose(0, 1)
        own_value[self.row, :, self.slot] = value[0].transpose(0, 1)
        prompts, heads, longest, size = prompt_key.shape
        rows, per = own_key.shape[0], memory.per
        repeat = query.shape[1] // heads

        new = query[0].transpose(0, 1)  # (N, H, D)
        if self.even:
            padded = new[:, None]
        else:
            padded = new.new_zeros(rows, width, *new.shape[1:])
            padded[self.row, self.column] = new
        # (rows, width, H, D) -> (prompts, K, per · width · repeat, D), and back for what hangs on the last axis
        folded = padded.reshape(prompts, per * width, heads, repeat, size).transpose(1, 2).flatten(2, 3)
        if prompts == 1 and window is None and _fuses(query):
            return self._fused(folded, prompt_key, prompt_value, own_key, own_value, scaling)

        def to_rows(x: Tensor) -> Tensor:  # (prompts, K, per · width · repeat, X) -> (rows, K, width · repeat, X)
            return x.unflatten(2, (per, width * repeat)).transpose(1, 2).flatten(0, 1)

        with_own = to_rows(folded) @ own_key[:, :, :used].transpose(2, 3)
        scores = at_least_float32(torch.cat([to_rows(folded @ prompt_key.transpose(2, 3)), with_own], 3))
        mask = self._mask(window, scores, longest)
        scores = scores.mul_(scaling).view(rows, heads, width, repeat, -1).add_(mask)
        weights = scores.softmax(-1).to(value.dtype).view(rows, heads, width * repeat, -1)
        shared = weights[..., :longest].unflatten(0, (prompts, per)).transpose(1, 2).flatten(2, 3)
        out = to_rows(shared @ prompt_value) + weights[..., longest:] @ own_value[:, :, :used]
        out = out.view(rows, heads, width, repeat, size).permute(0, 2, 1, 3, 4).flatten(2, 3)  # (rows, width, H, D)
        return (out[:, 0] if self.even else out[self.row, self.column])[None]

    def _fused(self, folded: Tensor, prompt_key, prompt_value, own_key, own_value, scaling: float) -> Tensor:
        """As `attend` with one prompt, which all see whole: its scores are never written down. The two parts, prompt
        and own, are weighed by the sums of their exponentials."""
        heads, size = folded.shape[1], folded.shape[3]
        rows, width, used = own_key.shape[0], self.width, self.used
        repeat = folded.shape[2] // (rows * width)
        shared, log_shared = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            folded, prompt_key, prompt_value, scale=scaling
        )

        def to_rows(x: Tensor) -> Tensor:  # (1, K, rows · width · repeat, X) -> (rows, K, width · repeat, X)
            return x.unflatten(2, (rows, width * repeat))[0].transpose(0, 1)

        scores = at_least_float32(to_rows(folded) @ own_key[:, :, :used].transpose(2, 3)).mul_(scaling)
        mask = self._mask(None, scores, 0).reshape(rows, 1, width, 1, used)
        scores = scores.view(rows, heads, width, repeat, used).add_(mask).view(rows, heads, width * repeat, used)
        log_own = scores.logsumexp(-1, keepdim=True)
        own = scores.softmax(-1).to(own_value.dtype) @ own_value[:, :, :used]
        log_shared = to_rows(log_shared.view(1, heads, -1, 1))
        weight = torch.sigmoid(log_shared - log_own).to(own.dtype)  # e^a / (e^a + e^b)
        out = to_rows(shared) * weight + own * (1 - weight)
        out = out.view(rows, heads, width, repeat, size).permute(0, 2, 1, 3, 4).flatten(2, 3)
        return (out[:, 0] if self.even else out[self.row, self.column])[None]
