"""A trained model at work: predictions with their reasons from Python, in bulk and over HTTP."""

from .answering import Prediction
from .predictor import Predictor, Recommendation

__all__ = ["Prediction", "Predictor", "Recommendation"]
