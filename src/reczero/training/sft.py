"""Supervised fine-tuning on traces, by TRL's trainer: the loss is on the answer alone."""

import math
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import torch
from datasets import Dataset as Rows
from trl import SFTConfig, SFTTrainer

from reczero.errors import UserError
from reczero.reasoning import Context, parse
from reczero.recipes import Recipe
from reczero.rollout import Policy
from reczero.rollout.packed import packed_weights

from .callbacks import Pace
from .checkpoints import AtomicCheckpoints
from .processes import Processes
from .session import Session, new_adapter


class PackedSFTTrainer(AtomicCheckpoints, SFTTrainer):
    """TRL's, with the weights laid out for the CPU in every step."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        with packed_weights(self.accelerator.unwrap_model(model)):
            return super().training_step(model, inputs, num_items_in_batch)


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
    policy: Policy, contexts: list[Context], texts: list[str], recipe: Recipe, folder: Path
) -> PackedSFTTrainer:
    """A trainer of `policy` on the answers `texts`; its checkpoints go to `folder`."""
    s, m, seed = recipe.sft, recipe.model, recipe.training.seed
    share, rest = divmod(s.traces_per_step, (count := Processes.join().count))
    if rest:
        raise UserError(f"sft.traces_per_step: {s.traces_per_step} is not a multiple of {count} processes.")
    most = max(n for n in range(1, min(share, s.traces_per_batch) + 1) if share % n == 0)
    pairs = [tokens_of(policy, context, text) for context, text in zip(contexts, texts, strict=True)]
    rows = Rows.from_dict(
        {
            "input_ids": [prompt + answer for prompt, answer in pairs],
            "labels": [[-100] * len(prompt) + answer for prompt, answer in pairs],
        }
    )
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
        model=policy.model,
        args=config,
        train_dataset=rows,
        processing_class=policy.tokenizer,
        peft_config=new_adapter(policy, recipe),
    )
    policy.model = trainer.accelerator.unwrap_model(trainer.model)  # with its adapter, if it got one
    return trainer


def imitate(session: Session, stage: str, traces: pl.DataFrame, contexts: list[Context]) -> None:
    """SFT of the recipe's own model on kept traces (`text`), one context each; the best by validation is kept."""
    recipe = session.recipe
    texts = traces["text"].to_list()
    key = session.key(recipe.sft.model_dump(mode="json"), traces["example_id"].to_list(), texts)
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
    session.optimise(stage, key, policy, lambda: build_sft_trainer(policy, contexts, texts, recipe, folder), pace)
    if session.processes.main:
        for checkpoint in folder.glob("checkpoint-*"):  # no stage goes back to them
            shutil.rmtree(checkpoint, ignore_errors=True)
