"""A folder with all that a run on verl needs: data, overrides, reward and scripts; and its submission to Ray."""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import AutoConfig

from reczero import __version__
from reczero.data import Dataset
from reczero.errors import UserError
from reczero.files import atomic_dir, link_or_copy, write_json
from reczero.models import load_tokenizer, quiet, resolve_model
from reczero.reasoning import Template
from reczero.recipes import Recipe, to_yaml
from reczero.recipes.rows import Part, epochs_order, prepared, select, without_histories

from . import verl
from .reward import bundle
from .verl import Cluster, Sizes

OURS = "overrides.txt"  # the file that tells a launch folder
RESULTS = ("checkpoints", "models", "model", "validation", "test")  # what a run leaves in it
BASE = "base"  # in it, a model that came from this machine
SCRIPTS = ("run.sh", "evaluate.sh", "submit.sh", "slurm.sh", "environment.sh", "README.md")
_ROUND = 8  # token limits are rounded up to a multiple
_ODD = re.compile(r"[\x00-\x1f\x7f\\]|\$\{")
_MOST_ROWS = 10_000_000  # of the training table, all epochs

Say = Callable[[str], None]
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Launch:
    """All of a launch folder, before it is written.

    tables, texts: by file name. model: what training begins with, a folder (it is copied) or a hub's name.
    """

    recipe: Recipe
    cluster: Cluster
    data: Dataset
    sizes: Sizes
    tables: dict[str, pl.DataFrame]
    texts: dict[str, str]
    model: Path | str

    @property
    def differences(self) -> list[str]:
        told = verl.differences(self.recipe)
        if not self.sizes.measured:
            longest = self.sizes.prompt_tokens
            told.append(
                f"--prompt-tokens: prompts of more than {longest:,} tokens are left out; in a comparison they fail"
            )
        return told


def plan_launch(
    recipe: Recipe, out: Path, cluster: Cluster, extra: Sequence[str], prompt_tokens: int | None, say: Say,
    report: Report,
) -> Launch:  # fmt: skip
    """Prepares the data and puts everything together; writes nothing but the cached data set.

    extra: further overrides for GRPO in verl's own words. prompt_tokens: the longest prompt that is allowed, where the
    model's tokenizer can't be had to measure it. Raises UserError.
    """
    out = out.absolute()
    verl.check_extra(extra)
    if _ODD.search(str(out)):
        raise UserError(
            f"--out {out}: verl's configuration can't hold this path; choose one without control "
            "characters, backslashes and ${"
        )
    verl.check(recipe, cluster)
    data = prepared(recipe)
    parts = select(recipe, data)
    template = Template(recipe.rollout.template, data.scale)
    t, tables = recipe.training, {}
    if (rows := parts["train"].examples.height * t.epochs) > _MOST_ROWS:
        raise UserError(f"training.epochs: {t.epochs:g} make {rows:,.0f} rows of training; give training.steps instead")
    for name, part in parts.items():
        tables[f"{name}.parquet"] = rl_table(part, template, data.name, name)
    train = parts["train"].examples["rating"].to_numpy()
    order = epochs_order(train, t.epochs, t.groups_per_step if t.stratify else 1, t.seed)
    tables["train.parquet"] = tables["train.parquet"][order]
    if recipe.method != "reczero":
        tables["sft.parquet"] = sft_table(*_traces(recipe, data, say, report), template)
    sizes = _measured(recipe, tables, prompt_tokens, report)
    fallback = float(np.median(without_histories(data, "train")["rating"].to_numpy()))  # as a run scores failures
    launch = Launch(recipe, cluster, data, sizes, tables, {}, resolve_model(recipe.model.name))
    launch.texts.update(_texts(launch, out, extra), **{"reward.py": bundle(template, t.reward, fallback)})
    return launch


def write_launch(launch: Launch, out: Path) -> None:
    """Writes the folder. An earlier launch there is replaced, unless a run has left results in it. Raises UserError."""
    out = out.absolute()
    if found := [name for name in RESULTS if (out / name).exists()]:
        raise UserError(
            f"{out}: holds a run's {found[0]}/; its run.sh or submit.sh goes on with it, else choose another --out"
        )
    with atomic_dir(out, ours=OURS) as folder:
        for name, table in launch.tables.items():
            table.write_parquet(folder / name)
        if isinstance(launch.model, Path):
            shutil.copytree(launch.model, folder / BASE, copy_function=link_or_copy)
        for name, text in launch.texts.items():
            (folder / name).write_text(text, "utf-8")
            if name.endswith(".sh"):
                (folder / name).chmod(0o755)
        about = {"rollout": launch.recipe.rollout.model_dump(mode="json"), "scale": launch.data.scale.to_dict()}
        write_json(folder / "reczero.json", about)
        write_json(
            folder / "launch.json",
            {"reczero": __version__, "verl": verl.VERSION, "data": launch.data.name,
             "fingerprint": launch.data.fingerprint, "rows": {n: table.height for n, table in launch.tables.items()}},
        )  # fmt: skip


def submit(folder: Path, address: str) -> str:
    """Hands a launch folder to the Ray cluster at `address` (http://HOST:8265) by its submit.sh, which wants Ray's own
    command on the PATH. Returns what `ray` said. Raises UserError.
    """
    command = ["bash", str(folder.absolute() / "submit.sh"), address]
    if shutil.which("ray") is None:
        raise UserError(
            f"--submit {address}: no `ray` command here; install verl's environment ({folder}/environment.sh) and put "
            f"it on the PATH, or run there: {shlex.join(command)}"
        )
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise UserError(f"--submit {address}: the cluster took no job ({reason[-1][:300]})")
    return done.stdout.strip()


# --- tables -----------------------------------------------------------------------------------------------------------


def rl_table(part: Part, template: Template, source: str, split: str) -> pl.DataFrame:
    """verl's schema for reinforcement learning: data_source, prompt (chat messages), ability, reward_model (style,
    ground_truth: the rating as text), extra_info (index, split and our ids). A row for each example."""
    e = part.examples
    return pl.DataFrame(
        {
            "data_source": [source] * e.height,
            "prompt": [template.messages(context) for context in part.contexts],
            "ability": ["recommendation"] * e.height,
            "reward_model": [{"style": "rule", "ground_truth": _number(rating)} for rating in e["rating"]],
            "extra_info": [
                {"index": i, "split": split, "example_id": example, "user_id": user, "item_id": item}
                for i, (example, user, item) in enumerate(e.select("example_id", "user_id", "item_id").iter_rows())
            ],
        }
    )


def sft_table(part: Part, texts: Sequence[str], template: Template) -> pl.DataFrame:
    """verl's schema for supervised fine-tuning: messages, the last of which is the trace; example_id beside them."""
    messages = [
        [*template.messages(context), {"role": "assistant", "content": text}]
        for context, text in zip(part.contexts, texts, strict=True)
    ]
    return pl.DataFrame({"messages": messages, "example_id": part.examples["example_id"]})


def _number(rating: float) -> str:
    return repr(float(rating)).removesuffix(".0")


def _traces(recipe: Recipe, data: Dataset, say: Say, report: Report) -> tuple[Part, list[str]]:
    """The kept traces and their contexts: the recipe's, or the profile writer's, written now."""
    from reczero.teachers.traces import contexts_of, kept, read_traces, teach_rows, write_traces

    teacher = recipe.teacher
    if teacher.traces:
        table, where = read_traces(Path(teacher.traces)), teacher.traces
    elif teacher.kind == "profile":
        say(f"traces: {teacher.kind} teacher, {teacher.examples:,} examples")
        with tempfile.TemporaryDirectory() as folder:
            rows = teach_rows(recipe, data)
            table = write_traces(recipe, teacher, data, rows, Path(folder), _no_policy, report)
        where = "teacher"
    else:
        raise UserError(
            f"teacher.kind {teacher.kind}: have it write first (reczero teach RECIPE --out traces/mine), then launch "
            "with teacher.traces=traces/mine"
        )
    good = kept(table, Path(where))
    return contexts_of(data, good, recipe.rollout.template.facts), good["text"].to_list()


def _no_policy(name: str) -> NoReturn:
    raise AssertionError(f"the profile writer asks no model, not {name}")


# --- sizes ------------------------------------------------------------------------------------------------------------


def _measured(recipe: Recipe, tables: dict[str, pl.DataFrame], prompt_tokens: int | None, report: Report) -> Sizes:
    """The longest prompt and trace, in tokens of the recipe's model; `prompt_tokens` where that can't be had here."""
    rows = tables["train.parquet"].height
    traces = tables["sft.parquet"].height if "sft.parquet" in tables else 0
    try:
        tokenizer = load_tokenizer(recipe.model.name)
    except UserError as error:
        if prompt_tokens is None:
            raise UserError(f"{error}\n  or give the longest prompt yourself: --prompt-tokens 6144") from error
        longest = prompt_tokens + recipe.rollout.max_tokens
        return Sizes(rows, prompt_tokens, traces, longest if traces else 0, measured=False)

    def longest_of(name: str, column: str, answered: bool) -> int:
        texts, most, table = tables[name][column], 0, tables[name]
        seen: set[str] = set()
        for i, messages in enumerate(texts):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answered)
            if text not in seen:  # later epochs repeat the first one's
                seen.add(text)
                most = max(most, len(tokenizer(text, add_special_tokens=False)["input_ids"]))
            if i % 100 == 99 or i + 1 == table.height:
                report({"what": f"measure {name}", "predicted": i + 1, "of": table.height})
        return -(-most // _ROUND) * _ROUND

    prompts = max(longest_of(name, "prompt", False) for name in tables if name != "sft.parquet")
    sizes = Sizes(rows, prompts, traces, longest_of("sft.parquet", "messages", True) if traces else 0)
    longest = max(prompts + recipe.rollout.max_tokens, sizes.trace_tokens)
    if longest > (room := _context_of(recipe.model.name)):
        raise UserError(
            f"rollout.max_tokens: {recipe.rollout.max_tokens:,} after prompts of {prompts:,} tokens are more than the "
            f"{room:,} that the model can read"
        )
    return sizes


def _context_of(model: str) -> int:
    """How many tokens it can read."""
    with quiet():
        config = AutoConfig.from_pretrained(resolve_model(model), trust_remote_code=False)
    return getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


# --- texts ------------------------------------------------------------------------------------------------------------


def _texts(launch: Launch, out: Path, extra: Sequence[str]) -> dict[str, str]:
    """Every text file of the folder but the reward, by its name."""
    recipe, cluster, sizes = launch.recipe, launch.cluster, launch.sizes
    base = isinstance(launch.model, Path)
    model = str(out / BASE) if base else str(launch.model)
    start = model if recipe.method == "reczero" else str(out / "models" / "sft")
    grpo = verl.written(verl.grpo_overrides(recipe, cluster, sizes, out, start))
    texts = {"recipe.yaml": to_yaml(recipe), OURS: "\n".join([*grpo, *extra]) + "\n"}
    if recipe.method != "reczero":
        sft = verl.written(verl.sft_overrides(recipe, cluster, sizes, out, model))
        texts["sft_overrides.txt"] = "\n".join(sft) + "\n"
    names = {
        "recipe": recipe, "cluster": cluster, "data": launch.data,
        "name": re.sub(r"[^\w.-]+", "-", out.name), "verl": verl.VERSION,
        "version": __version__, "differences": launch.differences, "base": base,
        "rows": {name.removesuffix(".parquet"): f"{table.height:,}" for name, table in launch.tables.items()},
        "sft": recipe.method != "reczero", "grpo": recipe.method != "sft",
    }  # fmt: skip
    jinja = Environment(
        loader=PackageLoader("reczero.scaleout", "folder"), undefined=StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    texts |= {name: jinja.get_template(f"{name}.j2").render(names) for name in SCRIPTS}
    return texts | {"merge.py": (files("reczero.scaleout") / "folder" / "merge.py").read_text("utf-8")}
