"""Which of several checkpoints is the best by its answers to validation rows.

Pure Python: the workers of other engines load it too.
"""

from collections.abc import Mapping

USABLE = 0.95  # share of well-formed answers from which on the error alone decides


def rank(validation: Mapping[str, float]) -> tuple[float, float, float]:
    """What makes one checkpoint better than another, lower first: what its form lacks to be usable, MAE, RMSE.

    A malformed answer is scored by the median rating, which errs less than many an answer: by the error alone a policy
    that fails often could be the best. Of few rows many checkpoints have the same MAE: then the lower RMSE is better.
    """
    return round(max(0.0, USABLE - validation["parse_rate"]), 6), validation["mae"], validation["rmse"]
