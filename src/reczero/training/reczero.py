"""`method: reczero`: data, policy, untrained predictions, GRPO with validation, predictions of the best checkpoint."""

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from datasets import Dataset as Rows
from peft import LoraConfig
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import GRPOConfig

from reczero.data import EXAMPLES, Dataset, Split, prepare_source
from reczero.errors import UserError
from reczero.evaluation import metrics
from reczero.evaluation.compare import finish_comparison
from reczero.evaluation.report import write_report
from reczero.files import atomic_dir, atomic_file, cache_dir
from reczero.machine import keep_freed_memory
from reczero.models import load_policy, quiet
from reczero.reasoning import Context, Scale, Template, parse, score
from reczero.recipes import Recipe
from reczero.rollout import Policy

from .callbacks import Journal, Samples, Watch
from .grpo import SharedPrefixGRPOTrainer
from .processes import Processes, started
from .run import Run

Say = Callable[[str], None]
Report = Callable[[dict[str, Any]], None]


class Part(NamedTuple):
    """Rows to train, validate or test on, with their contexts."""

    examples: pl.DataFrame
    contexts: list[Context]


def prepared(recipe: Recipe) -> Dataset:
    """The recipe's data set: a prepared folder as it is, or files, prepared once in the cache for these settings."""
    name = recipe.data.dataset
    if recipe.data.source is None and (Path(name) / "dataset.json").is_file():
        return Dataset.open(Path(name))
    origin, settings = recipe.data.origin, recipe.data.settings
    mark = hashlib.sha256(f"{origin} {settings.model_dump_json()}".encode()).hexdigest()[:8]
    return prepare_source(origin, cache_dir() / "prepared" / f"{origin.source or Path(name).name}-{mark}", settings)


def select(recipe: Recipe, data: Dataset) -> dict[str, Part]:
    """The rows of the three splits that the recipe asks for, each spread evenly over its period."""
    e = recipe.evaluation
    counts: dict[Split, int | None] = {
        "train": recipe.data.train_examples,
        "validation": e.validation_examples,
        "test": e.test_examples,
    }
    enough = (pl.col("user_count") >= e.min_user_history) & (pl.col("item_count") >= e.min_item_history)
    parts: dict[str, Part] = {}
    for split, count in counts.items():
        rows = data.examples(split, where=enough, limit=count)
        if rows.is_empty():
            raise UserError(
                f"data set {data.name}: no {split} rows with enough context; lower evaluation.min_*_history."
            )
        if split == "train" and rows.height < (step := recipe.training.groups_per_step):
            raise UserError(f"data.train_examples: {rows.height} rows are fewer than training.groups_per_step, {step}.")
        parts[split] = Part(rows, data.contexts(rows))
    return parts


def train(recipe: Recipe, out: Path, *, resume: bool, say: Say, report: Report) -> Run:
    """Runs the recipe into folder `out`. Raises UserError; whatever was finished before a kill is not done again.

    say: told each stage in words. report: told every line of metrics.jsonl, and {"predicted", "of", "what"} meanwhile.
    Processes that a launcher started share the work; they need a common file system.
    """
    if recipe.training.groups_per_step % (count := started()[1]):
        step = recipe.training.groups_per_step
        raise UserError(f"training.groups_per_step: {step} is not a multiple of {count} processes.")
    processes = Processes.join()
    if not processes.main:
        say = report = _silent
    keep_freed_memory()
    run = Run.open(out, recipe, resume, writes=processes.main)
    processes.wait()
    if run.finished:
        say(f"{out}: this run is finished; reusing it")
        return run
    with processes.main_first():  # what must be fetched or prepared is so once
        data = prepared(recipe)
        for key in sorted(recipe.data.model_fields_set & data.info["settings"].keys()):
            asked, made = getattr(recipe.data, key), data.info["settings"][key]
            if asked != made:
                say(f"data.{key}: the recipe says {asked}, {data.path} was prepared with {made}, which counts")
        parts = select(recipe, data)
        say(f"data: {data.name}, " + ", ".join(f"{part.examples.height:,} {name} rows" for name, part in parts.items()))
        policy = load(recipe, data.scale, processes.device)
    size = sum(p.numel() for p in policy.model.parameters())
    say(f"policy: {recipe.model.name}, {size / 1e6:,.0f} million weights")
    if processes.count > 1:
        say(f"{processes.count} processes, {recipe.training.groups_per_step // processes.count} groups a step in each")
    if processes.main:
        run.begin(recipe)
        _write_test_examples(run, policy, parts["test"])
    run.save(data={"name": data.name, "fingerprint": data.fingerprint}, scale=data.scale.to_dict())

    _predict(run, processes, policy, parts["test"], "untrained", recipe, say, report)
    if "grpo" not in run.info.get("seconds", {}):
        # TRL and transformers remark on each other's old names, and draw a bar for every file they write.
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*rollout_func.*experimental.*")
            _grpo(run, processes, policy, data, parts, recipe, say, report)
    processes.wait()  # until the best model is written
    best = load(recipe, data.scale, processes.device, run.path / "model")
    _predict(run, processes, best, parts["test"], recipe.method, recipe, say, report)
    if processes.main:
        finish_comparison(out, _without_histories(data, "train"), data.scale)
        write_report(out)
    run.save(finished=True)
    processes.part()
    return run


def _silent(_: object) -> None:
    """What a process says that does not speak."""


def _without_histories(data: Dataset, split: Split) -> pl.DataFrame:
    """All rows of a split, cold starts too, as baselines are fitted on them."""
    columns = [name for name in EXAMPLES if not name.endswith("_history")]
    return data.examples(split, cold_start=None, columns=columns)


def load(recipe: Recipe, scale: Scale, device: torch.device, model: Path | str | None = None) -> Policy:
    """The recipe's policy, or the one in folder `model`."""
    loaded, tokenizer = load_policy(model or recipe.model.name, dtype=recipe.model.dtype)
    loaded.to(device)
    r = recipe.rollout
    return Policy(loaded, tokenizer, Template(r.template, scale), r.guided, r.max_tokens)


def freeze_below(model: PreTrainedModel, layers: int) -> None:
    """Leaves only the uppermost `layers` blocks and the final norm to train."""
    model.requires_grad_(False)
    decoder = model.get_decoder()
    for block in decoder.layers[-layers:]:
        block.requires_grad_(True)
    decoder.norm.requires_grad_(True)


def _write_test_examples(run: Run, policy: Policy, test: Part) -> None:
    """What the report shows of each test row; the prompt is the exact text that the model sees."""
    prompts = [policy.tokenizer.decode(policy.encode(policy.template.messages(c))) for c in test.contexts]
    columns = (
        "example_id",
        "user_id",
        "item_id",
        "rating",
        "timestamp",
        "user_avg",
        "item_avg",
        "user_count",
        "item_count",
    )
    table = test.examples.select(columns).with_columns(
        title=pl.Series([c.item.title for c in test.contexts]), prompt=pl.Series(prompts)
    )
    with atomic_file(run.path / "test_examples.parquet") as path:
        table.write_parquet(path)


def _predictions(
    processes: Processes,
    policy: Policy,
    part: Part,
    name: str,
    batch_size: int,
    progress: Callable[[int], None] = _silent,
) -> pl.DataFrame:
    """`Policy.predict` of all rows, every process its share; all get the whole table. `progress`: rows done so far."""
    mine, total, done = processes.share(part.examples.height), part.examples.height, 0

    def moved(count: int) -> None:
        nonlocal done
        done = min(total, done + count * processes.count)  # the others go about as fast
        progress(done)

    contexts = [part.contexts[i] for i in mine]
    made = [(mine, policy.predict(part.examples[mine], contexts, name, batch_size, moved))]
    rows, tables = zip(*processes.gather(made), strict=True)
    return pl.concat(tables)[np.argsort(np.concatenate(rows))]


def _predict(
    run: Run, processes: Processes, policy: Policy, part: Part, name: str, recipe: Recipe, say: Say, report: Report
) -> None:
    path, rows = run.predictions(name), part.examples.height
    if path.is_file():
        return
    say(f"predicting {rows:,} test rows, {name}")
    began = time.perf_counter()

    def progress(done: int) -> None:
        report({"what": f"predict {name}", "predicted": done, "of": rows})

    table = _predictions(processes, policy, part, name, recipe.evaluation.batch_size, progress)
    if processes.main:
        with atomic_file(path) as file:
            table.write_parquet(file)
    run.done(f"predict_{name}", time.perf_counter() - began)


def _grpo(
    run: Run,
    processes: Processes,
    policy: Policy,
    data: Dataset,
    parts: dict[str, Part],
    recipe: Recipe,
    say: Say,
    report: Report,
) -> None:
    t, r = recipe.training, recipe.rollout
    journal = Journal(run.path / "metrics.jsonl", writes=processes.main)
    checkpoint = run.last_checkpoint()
    with processes.main_first():
        journal.forget_after(run.step_of(checkpoint) if checkpoint else -1)
    say(
        f"training: GRPO, {t.groups_per_step} groups of {r.group_size} a step"
        + (f", from {checkpoint.name}" if checkpoint else "")
    )

    fallback = float(np.median(_without_histories(data, "train")["rating"]))  # as the comparison scores failures

    def validate() -> dict[str, float]:
        part = parts["validation"]
        table = _predictions(processes, policy, part, "validation", recipe.evaluation.batch_size)
        truth = table["rating"].to_numpy()
        given = table["prediction"].cast(pl.Float64).fill_null(math.nan).to_numpy()
        scored = metrics.answered(given, fallback)
        return {
            "mae": metrics.mae(truth, scored),
            "rmse": metrics.rmse(truth, scored),
            "parse_rate": metrics.parse_rate(given),
            "mode_share": metrics.mode_share(given),
        }

    def keep(step: int, validation: dict[str, float]) -> None:
        if processes.main:
            with atomic_dir(run.path / "model") as folder:
                policy.model.save_pretrained(folder)
                policy.tokenizer.save_pretrained(folder)
        run.save(best_step=step, best_validation=validation)

    watch = Watch(journal, validate, keep, report, recipe.evaluation.validation_steps, t.minutes, processes)
    if recipe.model.train_layers:
        freeze_below(policy.model, recipe.model.train_layers)
    trainer = build_trainer(policy, parts["train"], recipe, run.path)
    trainer.add_callback(watch)
    watch.skipped_groups = trainer.take_skipped_groups
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if processes.main:
        Samples(run.path).finish(trainer.state.global_step)
    run.done("grpo", watch.spent)


def stratified_order(ratings: np.ndarray, strata: int, seed: int) -> np.ndarray:
    """(n,) ratings -> the order of the rows in which every `strata` in a row hold one of each stratum.

    The strata are equal parts of the rows sorted by rating, so the mean gradient is that of random batches, but a
    batch of few prompts no longer leans high or low by chance (stratified sampling; not in the paper). The rows that
    do not fill a batch come last.
    """
    draw = np.random.default_rng(seed)
    shuffled = draw.permutation(len(ratings))
    by_rating = shuffled[np.argsort(ratings[shuffled], kind="stable")]
    whole = len(ratings) // strata * strata
    left = draw.choice(len(ratings), len(ratings) - whole, replace=False)
    batches = draw.permuted(np.delete(by_rating, left).reshape(strata, -1), axis=1).T
    return np.concatenate([draw.permuted(batches, axis=1).ravel(), by_rating[left]])


def build_trainer(policy: Policy, part: Part, recipe: Recipe, folder: Path) -> SharedPrefixGRPOTrainer:
    """TRL's trainer, ours subclassed, as the recipe says."""
    t, r, m = recipe.training, recipe.rollout, recipe.model
    messages = [policy.template.messages(context) for context in part.contexts]
    rows = Rows.from_dict(
        {"prompt": messages, "rating": part.examples["rating"], "example_id": part.examples["example_id"]}
    )
    if t.stratify:
        rows = rows.select(stratified_order(part.examples["rating"].to_numpy(), t.groups_per_step, t.seed))
    processes = Processes.join()
    config = GRPOConfig(
        output_dir=str(folder / "checkpoints"),
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
        num_train_epochs=t.epochs,
        max_steps=t.steps or -1,
        seed=t.seed,
        shuffle_dataset=not t.stratify,
        logging_steps=1,
        save_steps=t.save_steps,
        report_to=list(t.report_to) or "none",
        bf16=m.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=m.gradient_checkpointing,
        use_vllm=r.engine == "vllm",
        vllm_mode="colocate",
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    samples = Samples(folder)
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

    trainer = SharedPrefixGRPOTrainer(
        policy=policy,
        advantage_epsilon=t.advantage_epsilon,
        tokens_per_batch=t.tokens_per_batch,
        args=config,
        reward_funcs=reward,
        train_dataset=rows,
        processing_class=policy.tokenizer,
        peft_config=LoraConfig(
            r=m.lora.rank, lora_alpha=m.lora.alpha, lora_dropout=m.lora.dropout, target_modules=m.lora.targets,
            task_type="CAUSAL_LM",
        )
        if m.lora
        else None,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
