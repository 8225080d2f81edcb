"""fp32 linear layers of a CPU by oneDNN (part of torch), their weights laid out in the blocks that its kernels read.

A product of 8 to 100 rows spends its time on reading the weights, and there this takes half the time; products of
thousands of rows gain a tenth. Measured figures are in docs/log.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_laid_out = WeakTensorKeyDictionary()  # weight -> its blocks, inside `packed_weights`


def _packs(module: nn.Module) -> bool:
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b by oneDNN; the weight as it is, or in blocks."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, blocks):
        ctx.save_for_backward(x, weight)
        return _product(x, blocks, bias)

    @staticmethod
    def backward(ctx, upstream):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = upstream.flatten(0, -2)
        return (
            _product(upstream, weight.t()) if needs_x else None,
            rows.t() @ x.flatten(0, -2) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
            None,
        )


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b without gradient, with the packed copy of the weights where there is one."""
    blocks = _laid_out.get(weight)
    return F.linear(x, weight, bias) if blocks is None else _product(x, blocks, bias)


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Inside, fp32 linear layers on a CPU multiply with packed copies of their weights, which must not change.

    Making the copies takes about as long as reading the weights a few times; nested, the outermost makes them.
    """
    packed = [module for module in model.modules() if _packs(module)]
    try:
        for module in packed:
            blocks = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
            _laid_out[module.weight] = blocks
            module.forward = partial(_forward, module, blocks)
        yield
    finally:
        for module in packed:
            vars(module).pop("forward", None)
            _laid_out.pop(module.weight, None)


def _forward(module: nn.Linear, blocks: Tensor, x: Tensor) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        return nn.Linear.forward(module, x)
    return _Linear.apply(x, module.weight, module.bias, blocks)
