"""What the stages of a run share: rows and contexts, policies, predictions, validation, and one way to optimise."""

import hashlib
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from reczero.data import Dataset
from reczero.errors import UserError
from reczero.evaluation import metrics
from reczero.files import atomic_dir, atomic_file, link_or_copy, read_json
from reczero.models import load_policy, quiet, weights_mark
from reczero.reasoning import Scale, Template
from reczero.recipes import Recipe
from reczero.recipes.rows import Part, without_histories
from reczero.rollout import Policy

from .callbacks import IDLE, Journal, Pace, Samples, Watch
from .processes import Processes
from .run import Run
from .sharded import is_sharded, save_whole

SAMPLING = {"group_size", "temperature", "engine"}  # of a recipe's rollouts: what matters to reinforcement alone
Say = Callable[[str], None]
Report = Callable[[dict[str, Any]], None]


def load(
    recipe: Recipe, scale: Scale, device: torch.device, model: Path | str | None = None, learns: bool = False
) -> Policy:
    """The recipe's policy, or the one in folder `model`.

    learns: ready to be trained: blocks frozen as the recipe says; the adapter of a run's stage in `model` goes on
    learning, where it is merged otherwise. Weights that learn are float32, and products are of the recipe's dtype: of a
    bfloat16 weight's 8 bits a step of 2e-6 changes none (docs/log.md). Adapters are float32 by themselves.
    """
    m, r = recipe.model, recipe.rollout
    goes_on = learns and model is not None and m.lora is not None
    mixed = learns and m.lora is None and m.dtype != "float32"
    loaded, tokenizer = load_policy(model or m.name, dtype="float32" if mixed else m.dtype, merge=not goes_on)
    loaded.to(device)
    if learns and m.train_layers and not m.lora:
        freeze_below(loaded, m.train_layers)
    products = getattr(torch, m.dtype) if mixed else None
    return Policy(loaded, tokenizer, Template(r.template, scale), r.guided, r.max_tokens, products)


def new_adapter(policy: Policy, recipe: Recipe) -> LoraConfig | None:
    """The LoRA adapter to add, where the recipe wants one and the policy has none yet."""
    lora, upper = recipe.model.lora, recipe.model.train_layers
    if lora is None or isinstance(policy.model, PeftModel):
        return None
    targets, among = lora.targets, None
    if upper:  # PEFT chooses blocks only where the layers are listed
        blocks = policy.model.get_decoder().layers
        among = list(range(len(blocks)))[-upper:]
        if targets == "all-linear":
            linear = (name for name, module in blocks[-1].named_modules() if isinstance(module, torch.nn.Linear))
            targets = sorted({name.rpartition(".")[2] for name in linear})
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets,
        layers_to_transform=among, task_type="CAUSAL_LM",
    )  # fmt: skip


def freeze_below(model: PreTrainedModel, layers: int) -> None:
    """Leaves only the uppermost `layers` blocks and the final norm to train."""
    model.requires_grad_(False)
    decoder = model.get_decoder()
    for block in decoder.layers[-layers:]:
        block.requires_grad_(True)
    decoder.norm.requires_grad_(True)


@dataclass
class Session:
    """A run under way. Stages are named; each leaves a model in `models/NAME` of the run."""

    recipe: Recipe
    run: Run
    processes: Processes
    data: Dataset
    parts: dict[str, Part]
    say: Say
    report: Report
    reuse: Path | None = None
    template: Template = field(init=False)

    def __post_init__(self) -> None:
        self.template = Template(self.recipe.rollout.template, self.data.scale)
        ratings = without_histories(self.data, "train")["rating"]
        self.fallback = float(np.median(ratings))  # as the comparison scores failures
        self.usual = float(np.mean(ratings.to_numpy()))

    # --- policies -------------------------------------------------------------------------------------------------

    def policy(self, model: Path | str | None = None, learns: bool = False) -> Policy:
        return load(self.recipe, self.data.scale, self.processes.device, model, learns)

    def model_of(self, stage: str) -> Path:
        return self.run.path / "models" / stage

    # --- predictions ----------------------------------------------------------------------------------------------

    def predictions(
        self, policy: Policy, part: Part, name: str, progress: Callable[[int], None] = lambda done: None
    ) -> pl.DataFrame:
        """`Policy.predict` of all rows, each process its share; all get the table. progress: told how many are done."""
        total, done = part.examples.height, 0
        mine = self.processes.share(total)

        def moved(count: int) -> None:
            nonlocal done
            done = min(total, done + count * self.processes.count)  # the others go about as fast
            progress(done)

        share = part.take(mine)
        table = policy.predict(share.examples, share.contexts, name, self.recipe.evaluation.batch_size, moved)
        rows, tables = zip(*self.processes.gather([(mine, table)]), strict=True)
        return pl.concat(tables)[np.argsort(np.concatenate(rows))]

    def predict_test(self, name: str, model: Path | None = None) -> None:
        """Writes `predictions/NAME.parquet` of the test rows, unless it is there."""
        path, test = self.run.predictions(name), self.parts["test"]
        if path.is_file():
            return
        self.say(f"predicting {test.examples.height:,} test rows, {name}")
        began = time.perf_counter()

        def progress(done: int) -> None:
            self.report({"what": f"predict {name}", "predicted": done, "of": test.examples.height})

        table = self.predictions(self.policy(model), test, name, progress)
        if self.processes.main:
            with atomic_file(path) as file:
                table.write_parquet(file)
        self.run.done(f"predict_{name}", time.perf_counter() - began)

    def scores(self, table: pl.DataFrame) -> dict[str, float]:
        """What training logs of predictions."""
        truth = table["rating"].to_numpy()
        given = table["prediction"].cast(pl.Float64).fill_null(math.nan).to_numpy()
        scored = metrics.answered(given, self.fallback)
        return {
            "mae": metrics.mae(truth, scored),
            "rmse": metrics.rmse(truth, scored),
            "parse_rate": metrics.parse_rate(given),
            "mode_share": metrics.mode_share(given),
        }

    # --- stages ---------------------------------------------------------------------------------------------------

    def settled(self, stage: str, key: str) -> bool:
        """Whether a stage is done: in this run, or with the same inputs in the run to reuse, whose files are linked."""
        if self.run.stage_done(stage):
            return True
        if self.reuse is None:
            return False
        info = read_json(self.reuse / "run.json")
        if not isinstance(info, dict):
            raise UserError(f"--reuse {self.reuse}: its run.json is damaged.")
        if stage not in info.get("seconds", {}) or info.get("stages", {}).get(stage, {}).get("key") != key:
            return False
        self.say(f"{stage}: taken from {self.reuse}, which did it with the same inputs")
        theirs, ours = (Journal(run / "metrics.jsonl", stage) for run in (self.reuse, self.run.path))
        if self.processes.main:
            for kind in ("models", "traces"):
                if (self.reuse / kind / stage).is_dir():
                    copy = link_or_copy if kind == "models" else shutil.copy2  # traces are appended to
                    with atomic_dir(self.run.path / kind / stage) as folder:
                        shutil.copytree(self.reuse / kind / stage, folder, copy_function=copy, dirs_exist_ok=True)
            if (self.reuse / "validation" / f"{stage}.parquet").is_file():
                with atomic_file(self.run.validation(stage)) as file:
                    shutil.copy2(self.reuse / "validation" / f"{stage}.parquet", file)
            Samples(self.run.path, stage).adopt(self.reuse)
            ours.forget_after(-1)
            for line in theirs.read():
                ours.write(**{name: value for name, value in line.items() if name != "stage"})
        self.processes.wait()
        self.run.stage(stage, **info["stages"][stage])
        self.run.done(stage, info["seconds"][stage])
        return True

    def key(self, *inputs: Any) -> str:
        """A hash of what a stage depends on: its own inputs, the data, the model, the template."""
        m, e, r = self.recipe.model, self.recipe.evaluation, self.recipe.rollout
        common = [
            self.data.fingerprint,
            m.model_dump(mode="json") | {"name": weights_mark(m.name)},
            r.model_dump(mode="json", exclude=SAMPLING),
            e.model_dump(mode="json", exclude={"test_examples"}),
        ]
        text = json.dumps([*common, self.recipe.training.seed, *inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def optimise(
        self, stage: str, key: str, policy: Policy, make: Callable[[], Trainer], pace: Pace, start: str | None = None
    ) -> None:
        """Trains from the last checkpoint of the stage, if any, and leaves the best model by validation in its folder.

        make: builds the trainer of `policy`. start: the stage whose model that is; then its validation holds for it.
        """
        journal = Journal(self.run.path / "metrics.jsonl", stage, writes=self.processes.main)
        checkpoint = self.run.last_checkpoint(stage)
        with self.processes.main_first():
            journal.forget_after(self.run.step_of(checkpoint) if checkpoint else -1)
        if checkpoint:
            self.say(f"{stage}: from {checkpoint.name}")

        part = self.parts["validation"]
        predicted = part.examples.clear()  # of the latest validation
        whole = self.run.path / "models" / f"{stage}.whole"  # where no process holds all weights: a copy of them

        def validate() -> dict[str, float]:
            nonlocal predicted
            if is_sharded(trainer.accelerator):
                save_whole(trainer.accelerator, trainer.model_wrapped, policy, whole)
            if start and trainer.state.global_step == 0:
                predicted = pl.read_parquet(self.run.validation(start))
                return self.run.info["stages"][start]["best_validation"]
            answering = self.policy(whole) if is_sharded(trainer.accelerator) else policy
            predicted = self.predictions(answering, part, stage)
            return self.scores(predicted)

        def keep(step: int, validation: dict[str, float]) -> None:
            if self.processes.main:
                with atomic_file(self.run.validation(stage)) as file:
                    columns = "example_id", "prediction", "rating", "parsed", "model", "decoding"
                    predicted.select(columns).with_columns(part.examples["user_id"]).write_parquet(file)
                with atomic_dir(self.model_of(stage)) as folder:
                    if is_sharded(trainer.accelerator):  # the copy that the validation wrote, which chose it
                        shutil.copytree(whole, folder, copy_function=link_or_copy, dirs_exist_ok=True)
                    else:
                        adapter = {"selected_adapters": ["default"]} if isinstance(policy.model, PeftModel) else {}
                        policy.model.save_pretrained(folder, **adapter)  # and not the reference of a KL term
                        policy.tokenizer.save_pretrained(folder)
            self.run.stage(stage, best_step=step, best_validation=validation)

        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*rollout_func.*experimental.*")
            trainer = make()
            if isinstance(policy.model, PeftModel):  # which asks a hub for its base model's vocabulary otherwise
                policy.model.save_pretrained = partial(policy.model.save_pretrained, save_embedding_layers=False)
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(ProgressCallback)
            watch = Watch(journal, validate, keep, self.report, pace, self.processes)
            watch.skipped_groups = getattr(trainer, "take_skipped_groups", None)
            trainer.add_callback(watch)
            if not (checkpoint and (watch.over() or self.run.is_last(checkpoint))):  # else killed right after the end
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if watch.stuck:
            self.say(
                f"{stage}: over, for in {IDLE} steps the answers of no group earned differently: nothing to learn from"
            )
        if self.processes.main:
            Samples(self.run.path, stage).finish(max(line["step"] for line in journal.read()))
            shutil.rmtree(whole, ignore_errors=True)
        self.processes.wait()  # until the best model is written
        self.run.stage(stage, key=key)
        self.run.done(stage, watch.spent)

    def finish(self, stage: str) -> None:
        """Makes the model of `stage` the run's: the same files under another name."""
        if self.processes.main:
            with atomic_dir(self.run.path / "model") as folder:
                shutil.copytree(self.model_of(stage), folder, copy_function=link_or_copy, dirs_exist_ok=True)
        best = self.run.info["stages"][stage]
        self.run.save(best_stage=stage, best_step=best["best_step"], best_validation=best["best_validation"])
