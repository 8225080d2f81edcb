"""How probable a policy finds each rating of the scale, at the place in its answer where it is about to write one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from reczero.reasoning import Scale, Template

_TAIL = 24  # tokens that surely hold the rating's opening tag


class Ratings:
    """The scale's ratings in a tokenizer's tokens, each with what closes it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template):
        self._tokenizer, self._open = tokenizer, template.rate.open
        texts = [Scale.text(value) + template.rate.close for value in template.scale.grid()]
        before = tokenizer.encode(self._open, add_special_tokens=False)

        def tokens(text: str) -> tuple[int, ...]:
            """As they follow the tag: some tokenizers put a mark in front of what stands alone."""
            both = tokenizer.encode(self._open + text, add_special_tokens=False)
            alone = both[: len(before)] != before
            return tuple(tokenizer.encode(text, add_special_tokens=False) if alone else both[len(before) :])

        self.numbers = [tokens(text) for text in texts]

    @property
    def single(self) -> bool:
        """Whether the first token tells which rating it is."""
        return len({numbers[0] for numbers in self.numbers}) == len(self.numbers)

    def due(self, tokens: Sequence[int]) -> bool:
        """Whether an answer stands right before its rating."""
        return self._tokenizer.decode(tokens[-_TAIL:]).rstrip().endswith(self._open)

    def weigh(
        self, hidden: Tensor, score: Callable[[Tensor, list[int]], Tensor], follow: Callable[[tuple[int, ...]], Tensor]
    ) -> Tensor:
        """(answers, ratings) probabilities that sum to 1, of answers that are due.

        hidden: (answers, D) states after the last token. score: states and tokens -> (answers, tokens) logits. follow:
        the states after further tokens, the same in each answer. Wherever the ratings' tokens branch, the logits of the
        branches are made probabilities: the policy's own under guidance, and free up to what it gives to anything else.
        """
        chances = torch.ones(len(hidden), len(self.numbers), dtype=torch.float64)
        nodes: list[tuple[tuple[int, ...], list[int]]] = [((), list(range(len(self.numbers))))]
        while nodes:
            before, inside = nodes.pop()
            branches: dict[int, list[int]] = {}
            for k in inside:
                branches.setdefault(self.numbers[k][len(before)], []).append(k)
            if len(branches) > 1:
                states = follow(before) if before else hidden
                shares = score(states, list(branches)).double().softmax(-1).cpu()
                for column, members in zip(shares.T, branches.values(), strict=True):
                    chances[:, members] *= column[:, None]
            nodes += [((*before, token), members) for token, members in branches.items() if len(members) > 1]
        return chances
