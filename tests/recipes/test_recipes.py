"""Every shipped recipe loads; mistakes are told all at once, with the key, the value and what is allowed."""

import re
from pathlib import Path

import pytest

from reczero.data import PUBLISHED, Origin
from reczero.errors import UserError
from reczero.recipes import Recipe, load_recipe, shipped, to_yaml
from reczero.recipes.keys import page

NAMES = list(shipped())
BENCHMARKS = ["amazon-book", "amazon-music", "yelp", "imdb"]


def test_the_promised_recipes_are_shipped():
    assert {"quickstart", "reczero-7b", "reczero-1gpu", *BENCHMARKS} <= set(NAMES)


def test_the_page_of_keys_is_what_the_code_says():
    """Made anew by: python -m reczero.recipes.keys > docs/recipes.md"""
    told = page()
    assert (Path(__file__).parents[2] / "docs" / "recipes.md").read_text("utf-8") == told
    rows = [re.split(r"(?<!\\)\|", line) for line in told.splitlines() if line.startswith("| `")]
    assert all(len(row) == 6 and row[4].strip() for row in rows)  # each key is explained
    assert {"`model.lora.rank`", "`rollout.template.facts`", "`training.keep`"} <= {row[1].strip() for row in rows}


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipes_load_say_how_they_run_and_survive_writing_out(name, tmp_path):
    recipe = load_recipe(name)
    assert f"reczero train {name}" in shipped()[name]
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_are_data_sets_that_we_know_prepared_as_in_the_paper(name):
    data = load_recipe(name).data
    assert data.origin.dataset == name in PUBLISHED and data.split == "time" and data.history == 10
    assert (data.min_user_history, data.min_item_history, data.min_context) == (1, 1, 5)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{source: table}", "source table needs reviews"),
        ("{dataset: x, columns: 3}", "data.columns"),
        ("{validation_from: 2020-01-01}", "go together"),
        ("{validation_from: 2020-01-01, test_from: 2019-01-01}", "must be before"),
        ("{validation_from: soon, test_from: 2019-01-01}", "not a date"),
        ("{split: random, validation_from: 2018-01-01, test_from: 2019-01-01}", "are for split time"),
        ("{max_bad: 2}", "data.max_bad"),
    ],
)
def test_impossible_data_is_told(data, says, tmp_path):
    (tmp_path / "r.yaml").write_text(f"method: reczero\ndata: {data}\n")
    with pytest.raises(UserError, match=says):
        load_recipe(tmp_path / "r.yaml")


def test_the_data_section_names_files_and_how_to_read_them(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "method: reczero\ndata:\n  source: table\n  reviews: a.csv\n  items: b.csv\n  columns: {user: who}\n"
        "  scale: 0-10\n  test_from: 2019-01-01\n  validation_from: 2018-01-01 10:30:00\n"
    )
    data = load_recipe(tmp_path / "r.yaml").data
    assert data.origin == Origin(None, "table", "a.csv", "b.csv", {"user": "who"}, "0-10")
    assert (data.settings.validation_from, data.settings.test_from) == ("2018-01-01 10:30:00", "2019-01-01")
    assert load_recipe("quickstart").data.origin == Origin("ml-100k")


@pytest.mark.parametrize("name", ["reczero-7b", "reczero-1gpu", *BENCHMARKS])
def test_paper_defaults(name):
    recipe = load_recipe(name)
    assert (recipe.rollout.group_size, recipe.rollout.temperature, recipe.training.kl) == (8, 1.0, 0.0)
    assert recipe.training.advantage_epsilon == 1e-6 and recipe.training.reward == "paper"
    assert recipe.training.groups_per_step == 8 and recipe.data.train_examples == 2400 and not recipe.rollout.guided


def test_all_mistakes_are_reported_together(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "method: reczero\nmodle: 1\n"
        "training: {learning_rate: -1, lr: 3, loss: foo}\n"
        "rollout: {template: {variant: thnk, historie: 1, facts: [spread, sums]}, guided: maybe}\n"
        "data: {train: 0.5}\n"
    )
    with pytest.raises(UserError) as caught:
        load_recipe(path, ["evaluation.batch_size=none", "nonsense"])
    text = str(caught.value)
    for part in (
        "modle: unknown key (value 1); did you mean model?",
        "training.learning_rate: -1 is not allowed",
        "training.lr: unknown key (value 3)",
        "training.loss: 'foo' is not allowed; input should be 'grpo'",
        "rollout.template.variant: 'thnk' is not allowed; input should be 'think', 'single' or 'direct'",
        "rollout.template.historie: unknown key (value 1); did you mean history?",
        "rollout.template.facts.1: 'sums' is not allowed; input should be 'spread', 'affinity', 'hint' or 'sum'",
        "rollout.guided: 'maybe' is not allowed",
        "evaluation.batch_size: 'none' is not allowed",
        "nonsense: an override is written key.sub=value",
        "data: train, validation and test must sum to 1",
    ):
        assert part in text, text
    assert "10 mistakes" in text or "11 mistakes" in text


def test_overrides_reach_any_value():
    overrides = ["training.learning_rate=3e-6", "rollout.template.variant=direct"]
    recipe = load_recipe("quickstart", [*overrides, "model.lora.rank=4", "model.train_layers=null"])
    assert recipe.training.learning_rate == 3e-6 and recipe.rollout.template.variant == "direct"
    assert recipe.model.lora is not None and recipe.model.lora.rank == 4 and recipe.model.train_layers is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: [", "not YAML"),
        (b"data: 2021-99-99", "not YAML"),
        (b"[" * 5000, "not YAML"),
        (b"- 1", "not a recipe"),
        (b"", "not a recipe"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"data: {}", "method: is missing"),
        (b"method: reczero\nmodel: 3", "model"),
        (b"method: magic", "method: 'magic' is not allowed"),
        (b"method: reczero\ndata: {history: 3, min_context: 9}", "min_context 9"),
        (b"method: iterate\nsft: {belief: 1}", "iterate have no beliefs"),
        (b"method: recone\nsft: {belief: 1}\nteacher: {kind: policy}", "policy has no beliefs"),
        (b"method: reczero\ndata: {history: 3}\nrollout: {template: {history: 9}}", "rollout.template.history"),
    ],
)
def test_files_that_are_no_recipe_are_told_in_words(tmp_path, content, told):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="r.yaml") as caught:
        load_recipe(path)
    assert told in str(caught.value)


@pytest.mark.parametrize("value", [".inf", "inf", ".nan", "-.inf"])
def test_infinite_values_are_refused(value):
    with pytest.raises(UserError, match="training.learning_rate"):
        load_recipe("quickstart", [f"training.learning_rate={value}"])


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(UserError, match="quickstart"):
        load_recipe("quickstrat")


def test_every_key_has_its_place_in_the_schema():
    sections = {"data", "model", "rollout", "teacher", "sft", "iterate", "training", "evaluation"}
    assert set(Recipe.model_fields) == {"method"} | sections
