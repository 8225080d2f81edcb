"""The rule-based reward: a part for the form, a part for the answer. Never raises, on any string."""

from dataclasses import dataclass
from typing import Literal

from .parser import Answer, parse
from .template import Template

RewardName = Literal["paper", "released-code", "exact-match"]


@dataclass(frozen=True)
class Reward:
    """What one answer earned. `abs_error` is None where there is no rating; `total` is what the policy learns from."""

    total: float
    form: float
    answer: float
    abs_error: float | None


def score(answer: Answer, truth: float, template: Template, name: RewardName = "paper") -> Reward:
    """With e = |ŷ − y|, on a scale of width w:

    | name            | well-formed                  | malformed | source |
    | `paper`         | +0.5 + (1 − e / w)           | −0.5      | the paper's rule; w = 4 on 1–5 |
    | `released-code` | +1.0 + (1 − e / (w / 2))     | −1.0      | code derived from the release: 1 − e / 2 on 1–5 |
    | `exact-match`   | +0.5 + (1 if e = 0 else 0)   | −0.5      | the paper's ablation of the answer reward |

    `released-code` is written there for 1–5 only; half the width is our reading of it for other scales.
    """
    form = 1.0 if name == "released-code" else 0.5
    if answer.rating is None:
        return Reward(-form, -form, 0.0, None)
    error = abs(answer.rating - truth)
    if name == "exact-match":
        earned = float(error < 1e-9)
    else:
        earned = 1 - error / (template.scale.width / (2 if name == "released-code" else 1))
    return Reward(form + earned, form, earned, error)


def score_text(text: str, truth: float, template: Template, name: RewardName = "paper") -> Reward:
    """`score` of the parsed text."""
    return score(parse(text, template), truth, template, name)
