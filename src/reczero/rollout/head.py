"""The vocabulary head, on just the places and tokens that matter: no (tokens, V) table of logits is ever kept.

Shapes: n places, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .packed import product

CHUNK = 512  # places whose logits exist at a time
NEVER = -1e30  # the logit of a forbidden token: finite, so that 0 · log 0 needs no special case


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def widen(bits: np.ndarray, vocabulary: int, device: torch.device) -> Tensor:
    """uint8 (n, bytes), a bit for each token of the tokenizer -> bool (n, vocabulary); beyond that, False."""
    allowed = np.unpackbits(bits, axis=1, bitorder="little", count=vocabulary)
    return torch.from_numpy(allowed.view(bool)).to(device)


@contextmanager
def replaced_head(model: PreTrainedModel, forward) -> Iterator[None]:
    """Inside, the model's "logits" are `forward(head, hidden)`, made where its wrappers (PEFT, DDP) expect them."""
    head = model.get_output_embeddings()
    before = vars(head).get("forward")  # of packed weights
    head.forward = partial(forward, head)
    try:
        yield
    finally:
        del head.forward
        if before:
            head.forward = before


def hidden_states(_head: nn.Module, hidden: Tensor) -> Tensor:
    """For `replaced_head`: leave the head out."""
    return hidden


def token_log_probs(
    head: nn.Module, hidden: Tensor, targets: Tensor, bits: np.ndarray | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy (without gradient), under softmax(head(hidden) / temperature).

    hidden (n, D), targets (n,) token ids; bits: which tokens may come at each place (see `widen`), None for all.
    Returns: two (n,), float32 or, of float64 states, float64.
    """
    if not len(hidden):
        return (nothing := at_least_float32(type(head).forward(head, hidden).sum(-1))), nothing.detach()
    if type(head) is nn.Linear:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            return _TokenLogProbs.apply(hidden.to(dtype), head.weight, head.bias, targets, bits, temperature)
    # A head with adapters, or of another kind: through its own forward, with the logits of all places at once.
    logits = at_least_float32(type(head).forward(head, hidden))
    if bits is not None:
        logits = logits.masked_fill(~widen(bits, logits.shape[1], logits.device), NEVER)
    every = (logits / temperature).log_softmax(-1)
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(-1)
    return every.gather(1, targets[:, None])[:, 0], entropy


class _TokenLogProbs(torch.autograd.Function):
    """With l = log softmax(z)[target], z = (W h + b) / T: dl/dz = onehot(target) - softmax(z).

    Where the head is frozen, dl/dh is made in the forward pass, while the logits exist: it only needs scaling later.
    Where it learns, the logits are made a second time.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, bits, temperature):
        learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        early = ctx.needs_input_grad[0] and not learns
        weight_, bias_ = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        log_probs, entropies, slopes, totals = [], [], [], []
        for part in torch.arange(len(hidden)).split(CHUNK):
            at = slice(int(part[0]), int(part[-1]) + 1)
            z = _logits(hidden[at], weight_, bias_, bits, at, temperature)
            highest = z.amax(-1, keepdim=True)
            z.sub_(highest)
            chosen = z.gather(1, targets[at, None])[:, 0]
            p = z.exp()
            total = p.sum(-1)
            log_total = total.log()
            log_probs.append(chosen - log_total)
            entropies.append(log_total - torch.linalg.vecdot(p, z) / total)
            totals.append(highest[:, 0] + log_total)
            if early:
                p.div_(total[:, None])
                slopes.append((F.embedding(targets[at], weight_) - p.to(weight_.dtype) @ weight_) / temperature)
        ctx.bits, ctx.temperature, ctx.early = bits, temperature, early
        if early:
            ctx.save_for_backward(torch.cat(slopes))
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(totals))
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(log_probs), entropy

    @staticmethod
    def backward(ctx, upstream, _):
        if ctx.early:
            (slopes,) = ctx.saved_tensors
            return (slopes * upstream[:, None].to(slopes.dtype), None, None, None, None, None)
        hidden, weight, bias, targets, totals = ctx.saved_tensors
        weight_, bias_ = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for part in torch.arange(len(hidden)).split(CHUNK):
            at = slice(int(part[0]), int(part[-1]) + 1)
            z = _logits(hidden[at], weight_, bias_, ctx.bits, at, ctx.temperature)
            scale = upstream[at] / ctx.temperature
            slope = z.sub_(totals[at, None]).exp_().mul_(-scale[:, None])
            slope.scatter_add_(1, targets[at, None], scale[:, None])
            slope = slope.to(hidden.dtype)
            if to_hidden is not None:
                torch.mm(slope, weight_, out=to_hidden[at])
            if to_weight is not None:
                if to_weight.dtype == slope.dtype:
                    to_weight.addmm_(slope.t(), hidden[at])
                else:
                    to_weight += slope.t() @ hidden[at]
            if to_bias is not None:
                to_bias += slope.sum(0)
        return to_hidden, to_weight, to_bias, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, bits, at: slice, temperature: float) -> Tensor:
    z = at_least_float32(product(hidden, weight, bias))
    if bits is not None:
        z.masked_fill_(~widen(bits[at], z.shape[1], z.device), NEVER)
    return z if temperature == 1 else z.div_(temperature)
