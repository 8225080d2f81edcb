"""The reinforcement stage: GRPO on the training rows, with the rule-based reward."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from datasets import Dataset as Rows
from trl import GRPOConfig

from reczero.reasoning import Answer, parse, score
from reczero.recipes import Recipe
from reczero.recipes.rows import Part, epochs_order
from reczero.rollout import Policy

from .callbacks import Pace, Samples
from .grpo import SharedPrefixGRPOTrainer
from .processes import Processes
from .session import SAMPLING, Session, new_adapter


def reinforce(session: Session, stage: str, start: Path | None) -> None:
    """GRPO from the model in folder `start`, or the recipe's own; then the starting model is a candidate too, where
    validation chooses."""
    recipe, run = session.recipe, session.run
    t, before = recipe.training, start and run.info["stages"][start.name]["key"]
    sampled = recipe.rollout.model_dump(mode="json", include=SAMPLING)
    key = session.key(t.model_dump(mode="json"), recipe.data.train_examples, before, sampled)
    if session.settled(stage, key):
        return
    session.say(f"{stage}: GRPO, {t.groups_per_step} groups of {recipe.rollout.group_size} a step")
    policy = session.policy(start, learns=True)
    pace = Pace(recipe.evaluation.validation_steps, t.minutes, at_start=start is not None, keep_last=t.keep == "last")
    session.optimise(
        stage, key, policy, lambda: build_trainer(policy, session.parts["train"], recipe, run.path, stage), pace,
        start.name if start else None,
    )  # fmt: skip


def build_trainer(
    policy: Policy, part: Part, recipe: Recipe, folder: Path, stage: str = "grpo"
) -> SharedPrefixGRPOTrainer:
    """TRL's trainer, ours subclassed, as the recipe says, for a stage of the run in `folder`."""
    t, r, m = recipe.training, recipe.rollout, recipe.model
    messages = [policy.template.messages(context) for context in part.contexts]
    rows = Rows.from_dict(
        {"prompt": messages, "rating": part.examples["rating"], "example_id": part.examples["example_id"]}
    )
    ratings = part.examples["rating"].to_numpy()
    rows = rows.select(epochs_order(ratings, t.epochs, t.groups_per_step if t.stratify else 1, t.seed))
    processes = Processes.join()
    config = GRPOConfig(
        output_dir=str(folder / "checkpoints" / stage),
        per_device_train_batch_size=r.group_size * t.groups_per_step // processes.count,
        gradient_accumulation_steps=1,  # the trainer cuts the step's rows into micro-batches by their tokens
        num_generations=r.group_size,
        max_completion_length=policy.longest,
        temperature=r.temperature,
        beta=t.kl,
        epsilon=t.clip,
        loss_type=t.loss,
        learning_rate=t.learning_rate,
        lr_scheduler_type=t.schedule,
        warmup_steps=t.warmup_steps,
        weight_decay=t.weight_decay,
        adam_beta1=t.adam_betas[0],
        adam_beta2=t.adam_betas[1],
        max_grad_norm=t.max_grad_norm,
        num_train_epochs=1,  # all epochs stand in the rows
        max_steps=t.steps or -1,
        seed=t.seed,
        shuffle_dataset=False,
        logging_steps=1,
        save_steps=t.save_steps,
        report_to=list(t.report_to) or "none",
        bf16=m.dtype == "bfloat16",
        fp16=m.dtype == "float16" and torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=m.gradient_checkpointing,
        use_vllm=r.engine == "vllm",
        vllm_mode="colocate",
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    samples = Samples(folder, stage)
    trainer: SharedPrefixGRPOTrainer

    def reward(
        completions: Sequence[list[dict[str, str]]], rating: Sequence[float], example_id, log_metric, **_
    ) -> list[float]:
        texts = [messages[0]["content"] for messages in completions]
        answers = [parse(text, policy.template) for text in texts]
        rewards = [
            score(answer, truth, policy.template, t.reward) for answer, truth in zip(answers, rating, strict=True)
        ]
        errors = [reward.abs_error for reward in rewards if reward.abs_error is not None]
        if errors:
            log_metric("rating_abs_error", sum(errors) / len(errors))
        log_metric("well_formed", len(errors) / len(rewards))
        step = trainer.state.global_step + 1
        table = {"step": [step] * len(texts), "example_id": example_id, "rating": list(rating)}
        table |= {"prediction": [a.rating for a in answers], "reward": [x.total for x in rewards], "text": texts}
        rows = pl.concat(processes.gather([pl.DataFrame(table, schema_overrides={"prediction": pl.Float64})]))
        if processes.main:
            samples.write(step, rows)
        return [reward.total for reward in rewards]

    def by_rating(row: dict[str, Any]) -> list[float]:
        return [
            score(Answer(rating), row["rating"], policy.template, t.reward).total
            for rating in policy.template.scale.grid()
        ]

    trainer = SharedPrefixGRPOTrainer(
        policy=policy,
        rating_rewards=by_rating if t.rating == "expected" else None,
        advantage_epsilon=t.advantage_epsilon,
        tokens_per_batch=t.tokens_per_batch,
        args=config,
        reward_funcs=reward,
        train_dataset=rows,
        processing_class=policy.tokenizer,
        peft_config=new_adapter(policy, recipe),
    )
    return trainer
