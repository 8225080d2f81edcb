"""Template-guided answers: which tokens a grammar allows next, and which it forces. Built on llguidance."""

from collections.abc import Sequence

import llguidance
import llguidance.hf
import numpy as np
from transformers import PreTrainedTokenizerBase

from reczero.reasoning import Template


class Guide:
    """A template's grammar compiled for one tokenizer. Cheap to start for every answer, safe to share.

    `max_tokens` is a bound on the length of its answers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template):
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer)
        compiled = llguidance.LLMatcher.grammar_from_lark(template.grammar())
        if fault := llguidance.LLMatcher.validate_grammar(compiled, self._tokenizer):
            raise ValueError(f"the template's grammar does not compile: {fault}")
        self._start = llguidance.LLMatcher(self._tokenizer, compiled)
        # Bytes bound tokens, whatever the tokenizer makes of the tags; a number is short.
        tags = sum(len(section.open + section.close) + 1 for section in template.sections)
        self.max_tokens = tags + len(template.thinking) * template.settings.section_tokens + 32

    def follow(self) -> "Path":
        """A new answer under this grammar."""
        return Path(self._start.deep_copy())

    def replay(self, tokens: Sequence[int]) -> tuple[list[int], np.ndarray]:
        """Where in a finished answer the policy had a choice, and among which tokens.

        A pure function of the answer, so nothing need be kept between rollout and update.

        Returns: the places of the chosen tokens, and which tokens each could be: uint8 (number of them, bytes), a bit
        for each token.
        """
        path, places, masks, at = self.follow(), [], [], 0
        while at < len(tokens) and not path.done:
            forced = path.forced()
            if not forced:
                places.append(at)
                masks.append(path.allowed())
                forced = [tokens[at]]
            path.take(list(tokens[at : at + len(forced)]))
            at += len(forced)
        return places, np.stack(masks) if masks else np.zeros((0, 0), dtype=np.uint8)


class Path:
    """One answer on its way through a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher):
        self._matcher = matcher

    @property
    def done(self) -> bool:
        return self._matcher.is_stopped()

    def forced(self) -> list[int]:
        """The tokens that must follow whatever the policy thinks; empty where it has a choice."""
        return self._matcher.compute_ff_tokens()

    def allowed(self) -> np.ndarray:
        """uint8 (bytes,): the tokens that may come next, a bit each (see `head.widen`)."""
        return np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)

    def take(self, tokens: list[int]) -> None:
        if not self._matcher.consume_tokens(tokens):
            raise RuntimeError(f"tokens {tokens} do not fit the grammar: {self._matcher.get_error()}")
