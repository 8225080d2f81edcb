"""Ratings that are weighed instead of drawn: what GRPO tends to, were endless ratings drawn for each reasoning.

The truth of a prompt is one draw of a noisy thing already; which rating the policy happened to draw need not add to the
noise, for at its place in an answer every rating's probability is at hand. Not in the paper. Shapes: B answers, whole
groups in a row; K ratings of the scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from reczero.rollout.decoder import Completion


def expected_advantages(rewards: Tensor, chances: Tensor, group_size: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """(B, K) what an answer earns with each rating, and how probable it was -> (B,) advantages of the reasoning and
    (B, K) of the ratings, in float32.

    (reward - m) / (s + epsilon), where m and s are the rewards' mean and standard deviation in the group under
    `chances`; that of a reasoning is the mean of its ratings'.
    """
    rewards, chances = rewards.double(), chances.double()

    def of_group(x: Tensor) -> Tensor:
        """(B, K) -> (B, 1): the mean under `chances` in the group of each answer."""
        return (chances * x).sum(1).view(-1, group_size).mean(1).repeat_interleave(group_size)[:, None]

    centred = rewards - of_group(rewards)
    each = centred / (of_group(centred**2).sqrt() + epsilon)
    return (chances * each).sum(1).float(), each.float()


@dataclass
class Weighed:
    """The ratings of a rollout's answers.

    at: (B,) which token of an answer is its rating, -1 where there is none or the answer is malformed. chances: (B, K).
    drawn: (B,) log-probability of the one that was drawn. reference: (B, K) log-probabilities under the reference
    policy of a KL term. values: (B, K) advantages.
    """

    at: Tensor
    chances: Tensor
    drawn: Tensor
    reference: Tensor | None = None
    values: Tensor | None = None

    @classmethod
    def of(
        cls, completions: Sequence[Completion], well_formed: Sequence[bool], ratings: int, device: torch.device
    ) -> Self:
        even = [1 / ratings] * ratings  # where there is none: all ratings earn the same
        known = [c.rating_at if ok and c.ratings else None for c, ok in zip(completions, well_formed, strict=True)]
        each = list(zip(completions, known, strict=True))
        return cls(
            torch.tensor([-1 if at is None else at for at in known], device=device),
            torch.tensor([even if at is None else c.ratings for c, at in each], device=device),
            torch.tensor([0.0 if at is None else c.log_probs[at] for c, at in each], device=device),
        )

    def advantages(self, given: Tensor, by_rating: Tensor, group_size: int, epsilon: float, width: int) -> Tensor:
        """(B, width) of every token; keeps `values`. given: (B,) what the answers earned; by_rating: (B, K) what
        well-formed ones would have earned with each rating.

        At a rating it is 1: the gradient there is made of `values` (`gain`).
        """
        rewards = torch.where(self.at[:, None] >= 0, by_rating, given[:, None])
        reasoning, self.values = expected_advantages(rewards, self.chances, group_size, epsilon)
        every = reasoning[:, None].repeat(1, width)
        rows = (self.at >= 0).nonzero()[:, 0]
        every[rows, self.at[rows]] = 1.0
        return every

    def keep_reference(self, log_probs: Tensor, rows: Tensor) -> None:
        """log_probs: (n, K), of the ratings of `rows` under the reference policy."""
        if self.reference is None:
            self.reference = torch.zeros_like(self.chances)
        self.reference[rows] = log_probs.to(self.reference.dtype)

    def gain(self, log_probs: Tensor, rows: Tensor, kl: float) -> tuple[Tensor, Tensor]:
        """(n, K) log-probabilities of the ratings of `rows` now -> (n,) what is to be made large, the expected
        advantage less kl times the divergence; and (n,) the KL divergence from the reference policy, 0 without one."""
        assert self.values is not None
        p = log_probs.exp()
        reference = log_probs if self.reference is None else self.reference[rows]
        divergence = (p * (log_probs - reference)).sum(1)
        return (p * self.values[rows]).sum(1) - kl * divergence, divergence.detach()
