"""A language model together with the template it reasons by: contexts in, answers out."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reczero.errors import UserError
from reczero.reasoning import Answer, Context, Template, parse

from .decoder import Completion, Decoding, Inference, decode
from .frozen import States
from .guidance import Guide
from .packed import packed_weights
from .ratings import Ratings
from .shared_prefix import cannot_share

REASONING = ("analyze_user", "analyze_item", "match", "think")  # the sections of all variants
PREDICTIONS: dict[str, pl.DataType] = {
    "example_id": pl.String(),
    "prediction": pl.Float64(),  # null where the answer is malformed
    "rating": pl.Float64(),
    "parsed": pl.Boolean(),
    "reasoning": pl.Struct({name: pl.String() for name in REASONING}),
    "text": pl.String(),
    "distribution": pl.List(pl.Float64()),  # over the scale's ratings, given the reasoning; null where it has no place
    "tokens": pl.Int32(),  # of the answer
    "model": pl.String(),
    "decoding": pl.String(),
}


@dataclass
class Policy:
    """`guided` forces the template's form; `max_tokens` bounds a free answer (the template bounds a guided one).

    products: the dtype of matrix products where it is not the weights' (mixed precision).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    guided: bool
    max_tokens: int
    products: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.guided and (reason := cannot_share(self.model)):
            kind = self.model.config.model_type
            raise UserError(f"rollout.guided: this {kind} model can't be guided ({reason}); set it false.")

    @cached_property
    def guide(self) -> Guide | None:
        return Guide(self.tokenizer, self.template) if self.guided else None

    @cached_property
    def ratings(self) -> Ratings:
        return Ratings(self.tokenizer, self.template)

    @property
    def longest(self) -> int:
        """The most tokens an answer can have."""
        return self.guide.max_tokens if self.guide else self.max_tokens

    def decoding(self, ready: Inference, pooled: bool = False) -> Decoding:
        """Greedy answers under way, each weighed before its rating; needs a model that can share prompts."""
        end, limit = self.tokenizer.eos_token_id, self.longest
        return Decoding(ready, end=end, max_tokens=limit, guide=self.guide, ratings=self.ratings, pooled=pooled)

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Chat messages -> token ids, up to where the answer begins."""
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    def read(self, completion: Completion) -> tuple[str, Answer]:
        """An answer as text, and parsed."""
        text = self.tokenizer.decode(completion.tokens, skip_special_tokens=True)
        return text, parse(text, self.template)

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        answers: int = 1,
        *,
        temperature: float = 0.0,
        seed: int | None = None,
        states: States | None = None,
        weigh: bool = False,
        begun: Sequence[Sequence[int]] | None = None,
        together: bool = False,
    ) -> list[list[Completion]]:
        """`answers` completions of each prompt; greedy at temperature 0. The same seed gives the same answers.

        `states`, if given, is filled with what the update need not compute again. weigh: note how probable each rating
        was (`Completion.ratings`). begun: what the answers to each prompt begin with. together: see `Decoding.add`. All
        four only where a prompt can be shared.
        """
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, self.products) if self.products else nullcontext():
            if cannot_share(self.model):
                return self._generate(prompts, answers, temperature, seed)
            generator = None if seed is None else torch.Generator(device).manual_seed(seed)
            return decode(
                self.model,
                prompts,
                answers,
                end=self.tokenizer.eos_token_id,
                max_tokens=self.longest,
                guide=self.guide,
                temperature=temperature,
                generator=generator,
                states=states,
                ratings=self.ratings if weigh else None,
                begun=begun,
                together=together,
            )

    @torch.no_grad()
    def _generate(
        self, prompts: Sequence[Sequence[int]], answers: int, temperature: float, seed: int | None
    ) -> list[list[Completion]]:
        """By transformers' `generate`, for models whose attention can't share a prompt: free, no `log_probs`."""
        rows = [list(prompt) for prompt in prompts for _ in range(answers)]
        batch = self.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt").to(self.model.device)
        end = self.tokenizer.eos_token_id
        how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        with torch.random.fork_rng():
            if seed is not None:
                torch.manual_seed(seed)
            made = self.model.generate(**batch, **how, max_new_tokens=self.longest, eos_token_id=end)
        completions = []
        for tokens in made[:, batch["input_ids"].shape[1] :].tolist():
            finished = end in tokens
            tokens = tokens[: tokens.index(end) + 1] if finished else tokens
            completions.append(Completion(tokens, [True] * len(tokens), [], finished))
        return [completions[i : i + answers] for i in range(0, len(completions), answers)]

    def predict(
        self,
        examples: pl.DataFrame,
        contexts: Sequence[Context],
        name: str,
        batch_size: int = 32,
        progress: Callable[[int], None] = lambda done: None,
    ) -> pl.DataFrame:
        """Greedy predictions for `examples` (with `example_id` and `rating`), a row each, in their order.

        A malformed answer has a null prediction and `parsed` False; nothing is dropped. `progress` is told how many
        rows each batch was.
        """
        made = self.complete(contexts, batch_size, progress, weigh=not cannot_share(self.model))
        completions = [completion for (completion,) in made]
        rows = [self.read(completion) for completion in completions]
        return pl.DataFrame(
            {
                "example_id": examples["example_id"],
                "prediction": [answer.rating for _, answer in rows],
                "rating": examples["rating"],
                "parsed": [answer.well_formed for _, answer in rows],
                "reasoning": [{key: answer.texts.get(key) for key in REASONING} for _, answer in rows],
                "text": [text for text, _ in rows],
                "distribution": [completion.ratings for completion in completions],
                "tokens": [len(completion.tokens) for completion in completions],
                "model": [name] * len(rows),
                "decoding": ["greedy, guided" if self.guided else "greedy"] * len(rows),
            },
            schema=PREDICTIONS,
        )

    def sample(
        self,
        contexts: Sequence[Context],
        answers: int,
        temperature: float,
        seed: int,
        batch_size: int = 32,
        progress: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """(rows, answers) ratings of sampled answers, NaN where one is malformed. batch_size counts answers."""
        made = self.complete(
            contexts, max(1, batch_size // answers), progress, answers=answers, temperature=temperature, seed=seed
        )
        given = [[self.read(completion)[1].rating for completion in completions] for completions in made]
        return np.array(given, float).reshape(len(contexts), answers)

    def complete(
        self, contexts: Sequence[Context], batch_size: int, progress: Callable[[int], None], **how: Any
    ) -> list[list[Completion]]:
        """The answers to each context, in their order. how: of `answer`; `progress` is told how many contexts each
        batch was."""
        prompts = [self.encode(self.template.messages(context)) for context in contexts]
        # Prompts of like length together: less padding in the prefill.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        made: dict[int, list[Completion]] = {}
        seed = how.pop("seed", None)
        with packed_weights(self.model):
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                drawn = None if seed is None else seed + start  # or every batch would draw alike
                answers = self.answer([prompts[i] for i in batch], seed=drawn, **how)
                made.update(zip(batch, answers, strict=True))
                progress(len(batch))
        return [made[i] for i in range(len(prompts))]
