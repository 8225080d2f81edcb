"""A trained model at work: predictions with their reasons from Python, in bulk and over HTTP.

What is named here is loaded when it is first asked for: with it come torch and transformers.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answering import Prediction
    from .predictor import Predictor, Recommendation

__all__ = ["Prediction", "Predictor", "Recommendation"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import predictor

    return getattr(predictor, name)
