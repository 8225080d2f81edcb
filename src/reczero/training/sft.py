"""Supervised fine-tuning on traces, by TRL's trainer: the loss is on the answer alone.

What TRL lacks here: a rating's target may be a distribution, the teacher's belief, and may count more than text; and
no scores of the whole vocabulary are made for the prompt, whose places have no loss (docs/log.md has what that saves).
"""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from datasets import Dataset as Rows
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from reczero.errors import UserError
from reczero.reasoning import Context, Scale, parse
from reczero.recipes import Recipe
from reczero.rollout import Policy
from reczero.rollout.head import replaced_head, token_log_probs
from reczero.rollout.packed import packed_weights
from reczero.rollout.ratings import Ratings

from .callbacks import Pace
from .checkpoints import AtomicCheckpoints
from .processes import Processes
from .session import Session, new_adapter


class Soft(NamedTuple):
    """What the answer's token at `place` of a row should be: so much of it `token`. Those of a place sum to 1."""

    place: int
    token: int
    share: float


class PackedSFTTrainer(AtomicCheckpoints, SFTTrainer):
    """TRL's, with the weights laid out for the CPU in every step, and TRL's loss from the answers' places alone.

    Where its rows have `soft` targets (lists of `Soft`), these take the place of the text's tokens, and count
    `rating_weight` times.
    """

    def __init__(self, *, rating_weight: float = 1.0, **kwargs):
        self.rating_weight = rating_weight
        super().__init__(**kwargs)
        if "soft" in self.train_dataset.column_names:
            self._signature_columns = ["input_ids", "labels", "soft"]
            self.data_collator: Any = _WithSoft(self.data_collator)

    def training_step(self, model, inputs, num_items_in_batch=None):
        with packed_weights(self.accelerator.unwrap_model(model)):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross entropies of all answers' places, summed, by the number of tokens of the step (as TRL's)."""
        labels = inputs["labels"][:, 1:]  # what the state before says
        targets = inputs["soft"] if "soft" in inputs else torch.zeros(0, 4, device=labels.device)
        soft_row, soft_place, token = (targets[:, i].long() for i in range(3))
        soft_place, share = soft_place - 1, targets[:, 3]
        count = (labels != -100).sum()
        text = labels.clone()
        text[soft_row, soft_place] = -100
        row, place = (text != -100).nonzero(as_tuple=True)

        def score(head, hidden: Tensor) -> Tensor:
            at = hidden[torch.cat([row, soft_row]), torch.cat([place, soft_place])]
            return token_log_probs(head, at, torch.cat([text[row, place], token]))[0][None]

        with replaced_head(self.accelerator.unwrap_model(model), score):
            call = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
            log_probs, soft = model(**call).logits[0].split([len(row), len(token)])
        rating = -(share * soft).sum()
        if len(targets):
            self._metrics["train"]["rating_loss"].append(rating.item() / len(labels))
        loss = (self.rating_weight * rating - log_probs.sum()) / (
            count if num_items_in_batch is None else num_items_in_batch
        )
        return loss if num_items_in_batch is None else loss * self.accelerator.num_processes


class _WithSoft:
    """A collator that makes of the rows' soft targets one table (targets, 4): row, place, token, share."""

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self._collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        soft = [(i, *target) for i, row in enumerate(rows) for target in row["soft"]]
        batch = self._collator([{key: value for key, value in row.items() if key != "soft"} for row in rows])
        return batch | {"soft": torch.tensor(soft, dtype=torch.float32)}


def soft_targets(
    prompt: Sequence[int], answer: Sequence[int], ratings: Ratings, chances: Sequence[float]
) -> list[Soft]:
    """The targets of each place where an answer's rating could have gone on as another one.

    answer: its tokens, that of the end last. chances: of `ratings.numbers`, which hold the answer's. Where ratings are
    several tokens long, each place's target is what the chances say of it, given the tokens before: on average over
    answers whose ratings are drawn by the chances that is the cross entropy with them.
    """
    ends = (n for n in ratings.numbers if tuple(answer[-1 - len(n) : -1]) == n)
    whole = next((n for n in ends if ratings.due(answer[: -1 - len(n)])), None)  # 10 ends as 0 does
    if whole is None:
        raise UserError(
            "sft.belief, sft.rating_weight: a trace's rating is none of the scale's, or the tokenizer glues it to what "
            "stands before it."
        )
    start = len(prompt) + len(answer) - 1 - len(whole)
    targets: list[Soft] = []
    for k in range(len(whole)):
        here: dict[int, float] = {}
        for tokens, chance in zip(ratings.numbers, chances, strict=True):
            if tokens[:k] == whole[:k]:
                here[tokens[k]] = here.get(tokens[k], 0.0) + chance
        total = sum(here.values())
        if len(here) > 1 and total > 0:
            targets += [Soft(start + k, token, chance / total) for token, chance in here.items() if chance]
    return targets


def tokens_of(policy: Policy, context: Context, text: str) -> tuple[list[int], list[int]]:
    """The prompt, exactly as in rollouts, and the answer with its end; no text can become a special token."""
    prompt = policy.encode(policy.template.messages(context))
    answer = policy.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return prompt, [*answer, policy.tokenizer.eos_token_id]


def epochs_order(lengths: np.ndarray, epochs: float, step: int, seed: int) -> np.ndarray:
    """(n,) lengths -> (n · epochs,) rows: every epoch in a new order, in steps of random rows.

    Within a step the rows are sorted by length, for less padding. Fixed here, and not by a sampler, so that a resumed
    run goes on in the order that it began with.
    """
    draw = np.random.default_rng(seed)
    rounds = [draw.permutation(len(lengths)) for _ in range(math.ceil(epochs))]
    rows = np.concatenate(rounds)[: max(1, round(len(lengths) * epochs))]
    parts = np.split(rows, range(step, len(rows), step))
    return np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])


def build_sft_trainer(
    policy: Policy,
    contexts: list[Context],
    texts: list[str],
    recipe: Recipe,
    folder: Path,
    chances: np.ndarray | None = None,
) -> PackedSFTTrainer:
    """A trainer of `policy` on the answers `texts`; its checkpoints go to `folder`.

    chances: (texts, ratings of the scale), the targets of the ratings; None for those that the texts end on.
    """
    s, m, seed = recipe.sft, recipe.model, recipe.training.seed
    share, rest = divmod(s.traces_per_step, (count := Processes.join().count))
    if rest:
        raise UserError(f"sft.traces_per_step: {s.traces_per_step} is not a multiple of {count} processes.")
    most = max(n for n in range(1, min(share, s.traces_per_batch) + 1) if share % n == 0)
    pairs = [tokens_of(policy, context, text) for context, text in zip(contexts, texts, strict=True)]
    columns: dict[str, list] = {
        "input_ids": [prompt + answer for prompt, answer in pairs],
        "labels": [[-100] * len(prompt) + answer for prompt, answer in pairs],
    }
    if chances is not None:
        columns["soft"] = [soft_targets(*pair, policy.ratings, row) for pair, row in zip(pairs, chances, strict=True)]
    rows = Rows.from_dict(columns)
    lengths = np.array([len(prompt) + len(answer) for prompt, answer in pairs])
    rows = rows.select(epochs_order(lengths, s.epochs, s.traces_per_step, seed))
    config = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=most,
        gradient_accumulation_steps=share // most,
        train_sampling_strategy="sequential",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        learning_rate=s.learning_rate,
        lr_scheduler_type=s.schedule,
        warmup_steps=s.warmup_steps,
        weight_decay=s.weight_decay,
        max_grad_norm=s.max_grad_norm,
        num_train_epochs=1,  # all epochs stand in the rows
        max_steps=s.steps or -1,
        seed=seed,
        logging_steps=1,
        save_steps=s.save_steps,
        report_to=list(recipe.training.report_to) or "none",
        bf16=m.dtype == "bfloat16",
        fp16=m.dtype == "float16" and torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=m.gradient_checkpointing,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = PackedSFTTrainer(
        rating_weight=s.rating_weight,
        model=policy.model,
        args=config,
        train_dataset=rows,
        processing_class=policy.tokenizer,
        peft_config=new_adapter(policy, recipe),
    )
    policy.model = trainer.accelerator.unwrap_model(trainer.model)  # with its adapter, if it got one
    return trainer


def _chances(recipe: Recipe, traces: pl.DataFrame, scale: Scale) -> np.ndarray | None:
    """(traces, ratings): the targets of the ratings, part truth and part the teacher's belief; None for plain texts."""
    s, grid = recipe.sft, scale.grid()
    if not s.belief and s.rating_weight == 1:
        return None
    truth = np.eye(len(grid))[[grid.index(scale.nearest(rating)) for rating in traces["rating"]]]
    if not s.belief:
        return truth
    if traces["belief"].null_count():
        raise UserError(
            "sft.belief: the traces hold no beliefs; teacher.kind=profile writes them where sft.belief is set."
        )
    if (traces["belief"].list.len() != len(grid)).any():
        raise UserError("sft.belief: the traces' beliefs are of another scale; have them written anew.")
    return s.belief * np.array(traces["belief"].to_list()) + (1 - s.belief) * truth


def imitate(session: Session, stage: str, traces: pl.DataFrame, contexts: list[Context]) -> None:
    """SFT of the recipe's own model on kept traces (`text`), one context each; the best by validation is kept."""
    recipe = session.recipe
    texts = traces["text"].to_list()
    chances = _chances(recipe, traces, session.data.scale)
    soft = [] if chances is None else [chances.tolist()]
    key = session.key(recipe.sft.model_dump(mode="json"), traces["example_id"].to_list(), texts, *soft)
    if session.settled(stage, key):
        return
    for name, text in zip(traces["example_id"], traces["text"], strict=True):
        if fault := parse(text, session.template).fault:
            raise UserError(f"traces: that of example {name} does not fit rollout.template: {fault}")
    s = recipe.sft
    session.say(f"{stage}: SFT on {traces.height:,} traces, {s.traces_per_step} a step")
    policy = session.policy(learns=True)
    folder = session.run.path / "checkpoints" / stage
    pace = Pace(s.validation_steps, s.minutes, s.patience)
    session.optimise(
        stage, key, policy, lambda: build_sft_trainer(policy, contexts, texts, recipe, folder, chances), pace
    )
    if session.processes.main:
        for checkpoint in folder.glob("checkpoint-*"):  # no stage goes back to them
            shutil.rmtree(checkpoint, ignore_errors=True)
