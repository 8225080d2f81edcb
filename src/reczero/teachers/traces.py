"""Traces for the cold start: which rows a teacher writes about, and who it is."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from reczero.data import Dataset
from reczero.errors import UserError
from reczero.files import cache_dir, held, writing
from reczero.models import weights_mark
from reczero.reasoning import Fact, Template
from reczero.recipes import Recipe, TeacherRecipe
from reczero.recipes.rows import NothingToLearn, Part, rows_of, without_histories
from reczero.rollout import Policy
from reczero.rollout.shared_prefix import cannot_share

from .base import Teacher
from .endpoint import EndpointTeacher
from .policy import PolicyTeacher
from .profile import ProfileWriter
from .teach import TRACES, teach

BATCH = 32  # tasks that a policy answers together
GROUNDS = 20_000  # training rows that a belief is fitted on: more did no better (docs/log.md)


def teach_rows(recipe: Recipe, data: Dataset, without: pl.Series | None = None) -> pl.DataFrame:
    """The training rows to write about, but for those `without` (example ids)."""
    return rows_of(recipe, data, "train", recipe.teacher.examples, without)


def write_traces(
    recipe: Recipe,
    settings: TeacherRecipe,
    data: Dataset,
    rows: pl.DataFrame,
    folder: Path,
    load: Callable[[str], Policy],
    report: Callable[[dict[str, Any]], None],
) -> pl.DataFrame:
    """Has the teacher of `settings` write about `rows`, into `folder`. load: a policy by name or folder."""
    template = Template(recipe.rollout.template, data.scale)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        if settings.kind == "profile":
            center = float(without_histories(data, "train")["rating"].mean())  # type: ignore[arg-type]
            writer = ProfileWriter(template, center)
            if recipe.sft.belief:
                known = rows_of(recipe, data, "train", GROUNDS)
                writer.learn(data.contexts(known, template.settings.facts), known["rating"].to_numpy())
            teacher: Teacher = writer
        elif settings.kind == "policy":
            policy = load(settings.policy or recipe.model.name)
            if settings.keep == "confident" and (reason := cannot_share(policy.model)):
                raise UserError(
                    f"teacher.keep: confident can't be told of this model ({reason}); choose first or diverse."
                )
            teacher = PolicyTeacher(policy, settings.samples, settings.temperature, recipe.training.seed, BATCH)
        else:
            assert settings.endpoint is not None  # the recipe's own check
            ledger = folder / "spent.jsonl"
            teacher = EndpointTeacher(template, settings.endpoint, cache_dir() / "teacher", ledger, settings.samples)
        fingerprint = traces_key(recipe, settings, data)
        contexts = data.contexts(rows, template.settings.facts)
        return teach(teacher, template, rows, contexts, settings, fingerprint, folder, report)


def traces_key(recipe: Recipe, settings: TeacherRecipe, data: Dataset) -> str:
    """A hash of all that a teacher's answers depend on: not how many, how they are filtered, or what they may cost."""
    asked: dict[str, Any] = {"kind": settings.kind, "samples": settings.samples}
    if settings.kind == "endpoint" and settings.endpoint:
        e = settings.endpoint
        address = e.base_url or os.environ.get("OPENAI_BASE_URL")
        asked |= {"model": e.model, "base_url": address, "temperature": e.temperature, "extra": e.extra}
        asked |= {"max_tokens": e.max_tokens}
    if settings.kind == "profile" and recipe.sft.belief:
        asked |= {"belief": [GROUNDS, recipe.evaluation.min_user_history, recipe.evaluation.min_item_history]}
    if settings.kind == "policy":
        asked |= {"policy": weights_mark(settings.policy or recipe.model.name), "temperature": settings.temperature}
        asked |= {"seed": recipe.training.seed, "rollout": recipe.rollout.model_dump(mode="json")}
    template = recipe.rollout.template
    text = json.dumps([data.fingerprint, data.scale.to_dict(), asked, repr(template)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_traces(folder: Path) -> pl.DataFrame:
    """The table that `reczero teach` wrote. Raises UserError."""
    path = folder / "traces.parquet" if folder.is_dir() else folder
    try:
        table = pl.read_parquet(path)
        if "belief" not in table.columns:  # written before there were any
            table = table.with_columns(belief=pl.lit(None, TRACES["belief"]))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{folder}: holds no traces.parquet ({error}); `reczero teach` writes one.") from error
    if missing := TRACES.keys() - set(table.columns):
        raise UserError(f"{path}: is no table of traces: no column {sorted(missing)[0]}.")
    if other := [name for name, kind in TRACES.items() if table.schema[name] != kind]:
        raise UserError(f"{path}: is no table of traces: column {other[0]} is of another kind.")
    learned = table.filter("kept")
    if learned["text"].null_count():
        raise UserError(f"{path}: a kept trace has no text.")
    if (twice := learned.filter(pl.col("example_id").is_duplicated())).height:
        raise UserError(f"{path}: {twice['example_id'][0]!r} has two kept traces; keep one.")
    return table


def kept(table: pl.DataFrame, where: Path) -> pl.DataFrame:
    """Those traces that are trained on."""
    rows = table.filter("kept")
    if rows.is_empty():
        raise NothingToLearn(f"{where}: not one trace was kept; `reczero traces` shows why.")
    return rows


def contexts_of(data: Dataset, traces: pl.DataFrame, facts: Sequence[Fact] = ()) -> Part:
    """The rows that traces are about, in their order. facts: those that the template shows. Raises UserError where one
    is no training row of `data`."""
    wanted = traces.select("example_id")
    rows = data.examples("train", cold_start=None, where=pl.col("example_id").is_in(wanted["example_id"].implode()))
    found = wanted.join(rows, on="example_id", how="left", maintain_order="left")
    if lost := found["user_id"].null_count():
        raise UserError(f"teacher.traces: {lost} of {traces.height} traces are about no training row of {data.name}.")
    if other := int((found["rating"] != traces["rating"]).sum()):
        raise UserError(
            f"teacher.traces: {other} of {traces.height} traces have another rating than {data.name}: of other data?"
        )
    return Part(found, data.contexts(found, facts))
