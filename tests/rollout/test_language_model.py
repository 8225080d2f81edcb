"""A policy behind the contract of all predictors, how a folder says what it is asked, and the probes."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from predictor_contract import PredictorContract

from reczero.cli import main
from reczero.data import Dataset
from reczero.errors import UserError
from reczero.evaluation.findings import PROBES, UNALTERED
from reczero.models import export_model
from reczero.reasoning import Scale
from reczero.rollout.language_model import LanguageModel
from reczero.rollout.opening import open_policy
from reczero.rollout.probes import probe


@pytest.fixture(scope="module")
def model_dir(tiny_model_dir, tmp_path_factory) -> Path:
    """The tiny model, guided."""
    folder = tmp_path_factory.mktemp("guided")
    for file in tiny_model_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    template = {"instructions": "brief", "history": 2, "opinions": 1, "section_tokens": 12}
    (folder / "reczero.json").write_text(json.dumps({"rollout": {"guided": True, "template": template}}))
    return folder


class TestLanguageModel(PredictorContract):
    @pytest.fixture(autouse=True)
    def _made(self, model_dir, table):
        data = Dataset.open(table)
        rows = data.examples("test", cold_start=None, limit=6).drop("rating")
        bare = rows.with_columns(  # a user and an item without any past
            user_history=pl.lit([], rows.schema["user_history"]),
            item_history=pl.lit([], rows.schema["item_history"]),
            user_avg=pl.lit(None, pl.Float64),
            item_avg=pl.lit(None, pl.Float64),
            user_count=pl.lit(0, pl.Int64),
            item_count=pl.lit(0, pl.Int64),
        )  # fmt: skip
        type(self).data, type(self).scale = data, data.scale
        type(self).rows = pl.concat([rows, bare[:2].with_columns(example_id=pl.col("example_id") + "?")])
        type(self).make = lambda: LanguageModel.open(str(model_dir), data, batch_size=4)

    def load(self, kind, folder):
        return kind.load(folder, self.data)

    def test_needs_its_data_set_to_be_loaded(self, model_dir):
        with pytest.raises(UserError, match="needs the data set"):
            LanguageModel.load(model_dir)

    def test_a_table_tells_what_an_answer_cost(self):
        table = type(self).make().table(self.rows)
        assert (table["tokens"] > 10).all() and (table["seconds"] > 0).all()
        assert table["rating"].null_count() == table.height
        given = table["distribution"].list.eval(pl.element().sum()).list.first()
        np.testing.assert_allclose(given, 1)


def test_the_model_of_a_run_is_asked_as_in_training(table, tiny_model_dir, tmp_path):
    run = tmp_path / "run"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"""
method: sft
data: {{dataset: "{table}", train_examples: 40}}
model: {{name: "{tiny_model_dir}", dtype: float32}}
rollout: {{guided: true, max_tokens: 77, template: {{instructions: brief, history: 1, opinions: 0, section_tokens: 3}}}}
teacher: {{examples: 12}}
sft: {{steps: 2, traces_per_step: 2, traces_per_batch: 2, validation_steps: 2}}
evaluation: {{validation_examples: 6, test_examples: 12}}
"""
    )
    assert main.run(["train", str(recipe), "--out", str(run)]) == 0
    assert main.run(["export", str(run), "--out", str(tmp_path / "exported")]) == 0
    for name in (run, run / "model", run / "models" / "sft", tmp_path / "exported"):
        policy = open_policy(str(name), Scale())
        assert policy.guided and policy.max_tokens == 77 and policy.template.settings.history == 1
    # The comparison's own predictions are those of the run.
    data = Dataset.open(table)
    theirs = pl.read_parquet(run / "predictions" / "sft.parquet")
    rows = data.examples("test", where=pl.col("example_id").is_in(theirs["example_id"].implode()))
    ours = LanguageModel.open(str(run), data).table(rows)
    assert ours.join(theirs, on=["example_id", "text", "prediction"]).height == theirs.height
    (run / "model").rename(run / "gone")
    with pytest.raises(UserError, match="has no model yet"):
        open_policy(str(run), Scale())


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_widened_where_the_processor_has_no_instructions_for_it(fast, model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("reczero.rollout.opening.multiplies_bfloat16", lambda: fast)
    saved = export_model(model_dir, tmp_path / "narrow", "bfloat16")
    (saved / "reczero.json").write_bytes((model_dir / "reczero.json").read_bytes())
    want = torch.bfloat16 if fast else torch.float32
    policy = open_policy(str(saved), device=torch.device("cpu"))
    assert {weight.dtype for weight in policy.model.parameters()} == {want}


def test_probes_alter_what_they_say_and_nothing_else(model_dir, table):
    data = Dataset.open(table)
    rows = data.examples("test", limit=12)
    policy = open_policy(str(model_dir), data.scale)
    contexts = data.contexts(rows)
    found = probe(policy, rows, contexts, seed=1, batch_size=5)
    assert found["probe"].unique(maintain_order=True).to_list() == list(PROBES)
    parts = {name: part for (name,), part in found.group_by("probe", maintain_order=True)}
    assert all(part["example_id"].equals(rows["example_id"]) for part in parts.values())

    def distribution(name: str) -> np.ndarray:
        return np.array(parts[name]["distribution"].to_list())

    before = distribution(UNALTERED)
    np.testing.assert_allclose(distribution("own-reasoning"), before, rtol=1e-3)
    assert parts["own-reasoning"]["prediction"].equals(parts[UNALTERED]["prediction"])
    for name in set(PROBES) - {UNALTERED, "own-reasoning", "other-reasoning"}:
        assert not np.allclose(distribution(name), before, rtol=1e-3), name

    def reasoning(name: str) -> list[str]:
        return parts[name]["text"].str.split("<rate>").list.first().to_list()

    users, own = rows["user_id"].to_list(), reasoning(UNALTERED)
    for i, text in enumerate(reasoning("other-reasoning")):  # what was written about another user
        assert text in [other for user, other in zip(users, own, strict=True) if user != users[i]]
    for text, cut in zip(own, reasoning("cut-reasoning"), strict=True):
        assert len(cut) < len(text) or len(text.split()) < 8
    assert found.equals(probe(policy, rows, contexts, seed=1, batch_size=5))
    alone = probe(policy, rows[:1], contexts[:1], seed=1)  # no other row to borrow from
    assert alone.height == len(PROBES)
    free = open_policy(str(model_dir), data.scale)
    free.guided, free.max_tokens = False, 10
    free.__dict__.pop("guide", None)
    nothing = probe(free, rows, contexts)
    assert nothing["prediction"].null_count() == nothing.height == len(PROBES) * rows.height
