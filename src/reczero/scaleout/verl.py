"""One mapping from a recipe to verl 0.9.1: the overrides of its configuration, and what verl does otherwise.

Keys and their meaning were read in verl's own configuration files (`verl/trainer/config`) and engines; a test composes
and validates the result by verl itself.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reczero.errors import UserError
from reczero.recipes import Recipe

VERSION = "0.9.1"
# How the losses of tokens are averaged, TRL's names to verl's. bnpo averages over a micro-batch in TRL, over the whole
# batch in our trainer, which is verl's token-mean.
_AGGREGATION = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
}
_PLAIN = re.compile(r"[A-Za-z0-9_./@%+-]+")  # what Hydra's grammar takes as it stands


@dataclass(frozen=True)
class Cluster:
    """What it runs on. tensor_parallel: GPUs over which vLLM splits one copy of the model."""

    gpus_per_node: int = 8
    nodes: int = 1
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
        if self.gpus_per_node % self.tensor_parallel:
            raise UserError(
                f"--tensor-parallel {self.tensor_parallel}: does not divide the {self.gpus_per_node} GPUs of a node"
            )

    @property
    def gpus(self) -> int:
        return self.gpus_per_node * self.nodes


@dataclass(frozen=True)
class Sizes:
    """What the data came to.

    rows: those to train on, over all epochs. prompt_tokens: the longest prompt; measured, or what the user allows.
    traces: kept ones; trace_tokens: the longest with its prompt.
    """

    rows: int
    prompt_tokens: int
    traces: int = 0
    trace_tokens: int = 0
    measured: bool = True


# What the scripts of a launch folder set themselves.
FIXED = (
    "data.train_files", "data.val_files", "reward.custom_reward_function.path", "trainer.default_local_dir",
    "trainer.validation_data_dir", "actor_rollout_ref.model.path",
)  # fmt: skip


def check_extra(extra: Sequence[str]) -> None:
    """Raises UserError for overrides that verl could not read, or that the scripts would overrule."""
    for override in extra:
        key, sep, value = override.partition("=")
        if not sep or not re.fullmatch(r"[+~]{0,2}[\w.@/]+", key) or "\n" in value:
            raise UserError(f"--verl {override!r}: is written key=value, in one line")
        if key.lstrip("+") in FIXED:
            raise UserError(f"--verl {override}: the folder's scripts set {key}, to where the folder is")


def check(recipe: Recipe, cluster: Cluster) -> None:
    """Raises UserError, with every reason why verl can't run the recipe on this cluster."""
    t, s = recipe.training, recipe.sft
    answers = t.groups_per_step * recipe.rollout.group_size
    faults = []
    if recipe.method == "iterate":
        faults.append("method iterate: has no launch of its own; launch recone once for each round")
    if recipe.method != "sft" and answers % cluster.gpus:
        faults.append(
            f"training.groups_per_step x rollout.group_size: {answers} answers a step can't be shared evenly by "
            f"{cluster.gpus} GPUs"
        )
    if recipe.method != "reczero" and s.traces_per_step % cluster.gpus_per_node:
        faults.append(
            f"sft.traces_per_step: {s.traces_per_step} can't be shared evenly by the {cluster.gpus_per_node} GPUs of a "
            "node"
        )
    if faults:
        raise UserError("\n  ".join(["the recipe can't be launched as it is:", *faults]))


def differences(recipe: Recipe) -> list[str]:
    """What verl does otherwise than the local engine with this recipe, one sentence each, for the user to read."""
    m, r, t, s = recipe.model, recipe.rollout, recipe.training, recipe.sft
    rl, taught = recipe.method != "sft", recipe.method != "reczero"
    told = []
    if r.guided:
        told.append(
            "rollout.guided: verl has no guided rollouts; answers are free, at most rollout.max_tokens "
            f"({r.max_tokens}) tokens long, so a model that does not write the form by itself learns nothing"
        )
    if r.template.instructions == "brief" and recipe.method == "reczero":
        told.append(
            "rollout.template.instructions: brief does not show the form that free answers must have; full does"
        )
    if m.train_layers:
        told.append(f"model.train_layers: all blocks are trained, not only the upper {m.train_layers}")
    if m.dtype == "float32":
        told.append("model.dtype: weights and optimizer are float32; products are bfloat16, as FlashAttention needs")
    if m.lora and m.lora.dropout:
        told.append(f"model.lora.dropout: verl's FSDP engine has none; {m.lora.dropout:g} is left out")
    if rl and t.minutes or taught and s.minutes:
        told.append("minutes: verl has no time limit; the run ends with its steps")
    if rl and t.keep == "last":
        told.append("training.keep: evaluate.sh takes the checkpoint that is the best by validation")
    if taught and s.patience:
        told.append("sft.patience: SFT runs to its end and its last weights are taken, not the best by validation")
    for section, schedule in (("training", t.schedule if rl else ""), ("sft", s.schedule if taught else "")):
        if schedule == "linear":
            told.append(f"{section}.schedule: verl has no linear one; cosine falls to zero too")
    if rl and t.advantage_epsilon != 1e-6:
        told.append(f"training.advantage_epsilon: verl adds 1e-6, not {t.advantage_epsilon:g}")
    if taught and (s.belief or s.rating_weight != 1):
        told.append("sft.belief, sft.rating_weight: verl learns the traces as they are, which end on the true rating")
    if rl and t.rating == "expected":
        told.append("training.rating: verl draws the rating and learns from what was drawn")
    if m.lora and rl and taught:
        told.append("model.lora: the adapter of SFT is merged, and reinforcement trains a new one on the result")
    return told


def grpo_overrides(recipe: Recipe, cluster: Cluster, sizes: Sizes, folder: Path, model: str) -> dict[str, Any]:
    """`python -m verl.trainer.main_ppo`: its keys and values. folder: the launch folder; model: name or folder.

    Rows are trained on in the file's order, which is the local engine's, with all its epochs: so there is one epoch
    without shuffling. A checkpoint is written at every validation, so that the best by validation can be taken.
    """
    m, r, t, e = recipe.model, recipe.rollout, recipe.training, recipe.evaluation
    longest = sizes.prompt_tokens + r.max_tokens
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    if sizes.rows < t.groups_per_step:
        raise UserError(f"{sizes.rows} rows in all epochs are fewer than training.groups_per_step, {t.groups_per_step}")
    a_pass = sizes.rows // t.groups_per_step
    steps = t.steps or a_pass
    overrides: dict[str, Any] = {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": True,
        "algorithm.use_kl_in_reward": False,
        "data.train_files": str(folder / "train.parquet"),
        "data.val_files": str(folder / "validation.parquet"),
        "data.train_batch_size": t.groups_per_step,
        "data.max_prompt_length": sizes.prompt_tokens,
        "data.max_response_length": r.max_tokens,
        "data.filter_overlong_prompts": not sizes.measured,  # rather left out than cut in silence
        "data.truncation": "error",
        "data.shuffle": False,
        "data.seed": t.seed,
        "reward.custom_reward_function.path": str(folder / "reward.py"),
        "reward.custom_reward_function.name": "compute_score",
        "reward.reward_manager.name": "naive",
        **_model_overrides("actor_rollout_ref.model", recipe, model),
        f"{actor}.strategy": "fsdp",
        **_precision_overrides(f"{actor}.fsdp_config", recipe),
        f"{actor}.fsdp_config.seed": t.seed,
        f"{actor}.data_loader_seed": t.seed,
        **_optimizer_overrides(f"{actor}.optim", t, betas=t.adam_betas),
        f"{actor}.ppo_mini_batch_size": t.groups_per_step,
        f"{actor}.ppo_epochs": 1,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": max(t.tokens_per_batch, longest),
        f"{actor}.loss_agg_mode": _AGGREGATION[t.loss],
        f"{actor}.clip_ratio": t.clip,
        f"{actor}.clip_ratio_low": t.clip,
        f"{actor}.clip_ratio_high": t.clip,
        f"{actor}.entropy_coeff": 0,
        f"{actor}.use_kl_loss": t.kl > 0,
        f"{rollout}.name": "vllm",
        f"{rollout}.n": r.group_size,
        f"{rollout}.temperature": r.temperature,
        f"{rollout}.top_p": 1.0,
        f"{rollout}.top_k": -1,
        f"{rollout}.seed": t.seed,
        f"{rollout}.dtype": "float16" if m.dtype == "float16" else "bfloat16",
        f"{rollout}.tensor_model_parallel_size": cluster.tensor_parallel,
        f"{rollout}.gpu_memory_utilization": 0.5,
        f"{rollout}.val_kwargs.do_sample": False,
        f"{rollout}.val_kwargs.temperature": 0,
        f"{rollout}.val_kwargs.n": 1,
        "trainer.n_gpus_per_node": cluster.gpus_per_node,
        "trainer.nnodes": cluster.nodes,
        "trainer.total_epochs": math.ceil(steps / a_pass),
        "trainer.total_training_steps": steps,
        "trainer.test_freq": e.validation_steps,
        "trainer.save_freq": e.validation_steps,
        "trainer.val_before_train": True,
        "trainer.project_name": "reczero",
        "trainer.experiment_name": folder.name,
        "trainer.default_local_dir": str(folder / "checkpoints" / "grpo"),
        "trainer.validation_data_dir": str(folder / "validation"),
        "trainer.logger": ["console", *t.report_to],
    }
    if t.kl:
        overrides |= {f"{actor}.kl_loss_coef": t.kl, f"{actor}.kl_loss_type": "low_var_kl"}
    if t.loss == "dr_grpo":
        overrides[f"{actor}.loss_scale_factor"] = r.max_tokens
    if m.lora:  # vLLM starts from the base model's own weights, to which adapters are added
        overrides[f"{rollout}.load_format"] = "safetensors"
    return overrides


def sft_overrides(recipe: Recipe, cluster: Cluster, sizes: Sizes, folder: Path, model: str) -> dict[str, Any]:
    """`torchrun -m verl.trainer.sft_trainer` on one node: its keys and values."""
    s, t = recipe.sft, recipe.training
    if sizes.traces < s.traces_per_step:
        raise UserError(f"{sizes.traces} kept traces are fewer than sft.traces_per_step, {s.traces_per_step}")
    an_epoch = sizes.traces // s.traces_per_step
    steps = s.steps or max(1, round(an_epoch * s.epochs))
    longest = sizes.trace_tokens
    return {
        "data.train_files": str(folder / "sft.parquet"),
        "data.val_files": None,
        "data.messages_key": "messages",
        "data.train_batch_size": s.traces_per_step,
        "data.use_dynamic_bsz": True,
        "data.max_token_len_per_gpu": s.traces_per_batch * longest,
        "data.micro_batch_size_per_gpu": s.traces_per_batch,
        "data.max_length": longest,
        "data.truncation": "error",
        "data.pad_mode": "no_padding",
        "data.enable_thinking_default": None,  # verl's own default, the word none, counts as true
        **_model_overrides("model", recipe, model),
        "engine.strategy": "fsdp",
        **_precision_overrides("engine", recipe),
        "engine.seed": t.seed,
        **_optimizer_overrides("optim", s, betas=(0.9, 0.999)),
        "trainer.n_gpus_per_node": cluster.gpus_per_node,
        "trainer.nnodes": 1,
        "trainer.total_epochs": math.ceil(steps / an_epoch),
        "trainer.total_training_steps": steps,
        "trainer.save_freq": -1,  # once, at the end
        "trainer.test_freq": -1,
        "trainer.seed": t.seed,
        "trainer.project_name": "reczero",
        "trainer.experiment_name": f"{folder.name}-sft",
        "trainer.default_local_dir": str(folder / "checkpoints" / "sft"),
        "trainer.logger": ["console", *t.report_to],
    }


def _model_overrides(key: str, recipe: Recipe, model: str) -> dict[str, Any]:
    m = recipe.model
    overrides: dict[str, Any] = {
        f"{key}.path": model,
        f"{key}.trust_remote_code": False,
        f"{key}.enable_gradient_checkpointing": m.gradient_checkpointing,
        f"{key}.use_remove_padding": True,
    }
    if m.lora:
        overrides |= {
            f"{key}.lora_rank": m.lora.rank,
            f"{key}.lora_alpha": m.lora.alpha,
            f"{key}.target_modules": m.lora.targets,
        }
    return overrides


def _precision_overrides(key: str, recipe: Recipe) -> dict[str, Any]:
    """Weights and optimizer in float32 whatever the recipe's dtype: an update of 2e-6 is lost in bfloat16's 8 bits."""
    overrides: dict[str, Any] = {f"{key}.model_dtype": "fp32"}
    if recipe.model.dtype == "float16":
        overrides[f"+{key}.mixed_precision.param_dtype"] = "fp16"
    return overrides


def _optimizer_overrides(key: str, section: Any, betas: Sequence[float]) -> dict[str, Any]:
    return {
        f"{key}.lr": section.learning_rate,
        f"{key}.lr_scheduler_type": "constant" if section.schedule == "constant" else "cosine",
        f"{key}.lr_warmup_steps": section.warmup_steps,
        f"{key}.weight_decay": section.weight_decay,
        f"{key}.betas": list(betas),
        f"{key}.clip_grad": section.max_grad_norm,
    }


def written(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as Hydra reads them on a command line, one each: key=value."""
    return [f"{key}={_value(value)}" for key, value in overrides.items()]


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value!r}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_value, value))}]"
    text = str(value)
    if isinstance(value, int) or _PLAIN.fullmatch(text):
        return text
    # Hydra's quoted strings: a quote is escaped by a backslash, and so are backslashes before one or before the end.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text) + "'"
