"""Policies: from a hub, a local folder, or a small packaged model. No torch is imported before one is loaded."""

from reczero.models.packaged import PACKAGED, SHIPPED, quiet, resolve_model
from reczero.models.policy import ADAPTER, export_adapter, export_model, load_policy, load_tokenizer, weights_mark

__all__ = [
    "ADAPTER", "PACKAGED", "SHIPPED", "export_adapter", "export_model", "load_policy", "load_tokenizer", "quiet",
    "resolve_model", "weights_mark",
]  # fmt: skip
