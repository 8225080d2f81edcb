"""Weights in the layout that few rows at a time like best, for as long as nothing is trained.

A product of 8 to 100 rows with fp32 weights spends its time on reading the weights. oneDNN (part of torch) can lay them
out once in the blocks that its kernels read; measured figures are in docs/log.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_laid_out = WeakTensorKeyDictionary()  # weight -> (which state of it, its blocks)


def _packs(module: nn.Module) -> bool:
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
    )


def _forward(blocks: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Inside, and without gradient, fp32 linear layers on a CPU multiply with packed copies of their weights.

    The copies of frozen weights are kept for the next time, the others (which the next step would change) dropped.
    """
    packed = [module for module in model.modules() if _packs(module)]
    try:
        for module in packed:
            weight = module.weight
            state = (weight._version, weight.data_ptr())
            if state != (known := _laid_out.get(weight, (None, None)))[0]:
                known = _laid_out[weight] = (state, torch.ops.mkldnn._reorder_linear_weight(weight.detach()))
            module.forward = partial(_forward, known[1], module.bias)
        yield
    finally:
        for module in packed:
            vars(module).pop("forward", None)
            if module.weight.requires_grad:
                _laid_out.pop(module.weight, None)
