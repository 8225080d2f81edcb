"""Facts: a row has the same prompt wherever it is asked, and a request tells what its facts rest on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import polars as pl
import pytest
from as_request import as_request

from reczero.cli import main
from reczero.data import Dataset, Known
from reczero.errors import BadRequest
from reczero.reasoning import Context, Fact, Standing, Template, TemplateSettings
from reczero.recipes import RolloutRecipe, load_recipe
from reczero.recipes.rows import select
from reczero.rollout import language_model
from reczero.rollout.language_model import LanguageModel
from reczero.rollout.opening import write_about
from reczero.rollout.probes import _as_user
from reczero.serving import Predictor, bulk
from reczero.serving.requests import PredictRequest, read
from reczero.teachers.traces import contexts_of, teach_rows

FACTS: tuple[Fact, ...] = get_args(Fact)
SETTINGS = TemplateSettings(instructions="brief", section_tokens=6, facts=FACTS)
TEMPLATE = Template(SETTINGS)


@pytest.fixture(scope="module")
def facts_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("facts") / "tiny"
    shutil.copytree(tiny_model_dir, folder)
    write_about(folder, RolloutRecipe(guided=True, template=SETTINGS), None)
    return folder


@pytest.fixture(scope="module")
def shown(facts_dir: Path, table: Path) -> Predictor:
    return Predictor.from_pretrained(facts_dir, table)


def prompts(contexts: list[Context]) -> list[str]:
    return [TEMPLATE.messages(context)[1]["content"] for context in contexts]


def test_a_row_has_the_same_prompt_on_every_way(facts_dir, data, shown, table, tmp_path, monkeypatch, capsys):
    rows = data.examples(cold_start=None)
    trained = dict(zip(rows["example_id"], prompts(data.contexts(rows, FACTS)), strict=True))
    assert sum("Together:" in prompt and "Those who rate alike" in prompt for prompt in trained.values()) > 200

    monkeypatch.setattr(bulk, "PORTION", 7)
    predicted = bulk.Examples(data, None, facts=FACTS).portions(lambda number: number % 3 > 0)
    for _, part in predicted:
        assert prompts([context for *_, context in part]) == [trained[name] for name, *_ in part]

    monkeypatch.setattr(language_model, "PORTION", 9)
    some = rows[::5]
    compared = LanguageModel.open(str(facts_dir), Dataset.open(table)).prompts(some.drop("user_history"))
    for name, prompt in zip(some["example_id"], compared, strict=True):
        assert trained[name] in prompt

    (tmp_path / "r.yaml").write_text(
        f"method: sft\ndata: {{dataset: {table}, train_examples: 40}}\nevaluation: {{test_examples: 20}}\n"
        f"rollout: {{template: {{instructions: brief, section_tokens: 6, facts: [{', '.join(FACTS)}]}}}}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    for part in select(recipe, data).values():
        assert prompts(part.contexts) == [trained[name] for name in part.examples["example_id"]]
    taught = contexts_of(data, teach_rows(recipe, data), recipe.rollout.template.facts)
    assert prompts(taught.contexts) == [trained[name] for name in taught.examples["example_id"]]

    name = rows["example_id"][-1]
    assert main.run(["data", "show", str(table), "--example", name, "--recipe", str(tmp_path / "r.yaml")]) == 0
    assert trained[name] in capsys.readouterr().out
    assert main.run(["train", str(tmp_path / "r.yaml"), "--dry-run"]) == 0
    assert main.run(["predict", str(facts_dir), str(table), "-o", str(tmp_path / "o.parquet")]) == 0
    assert pl.read_parquet(tmp_path / "o.parquet")["parsed"].all()


def test_pairs_of_ids_have_the_same_prompt_one_by_one_and_in_bulk(shown, data, tmp_path):
    pairs = [("u1", "i3"), ("u4", "i0"), ("u9", "i39")]
    want = prompts(Known(data, FACTS).contexts(pairs))
    assert all("This user on such items" in prompt for prompt in want)
    alone = [shown.context(read(PredictRequest, {"user_id": user, "item_id": item})) for user, item in pairs]
    (tmp_path / "pairs.csv").write_text("user_id,item_id\n" + "".join(f"{user},{item}\n" for user, item in pairs))
    ((_, part),) = bulk.Requests(tmp_path / "pairs.csv", shown).portions(lambda _: False)
    assert prompts(alone) == prompts([context for *_, context in part]) == want
    assert shown.predict(user_id="u1", item_id="i3").parsed
    assert len(shown.recommend(user_id="u1", candidate_ids=["i1", "i2"])) == 2


def test_what_a_data_set_knows_can_be_told_and_gives_the_trained_prompt(shown, data, facts_dir):
    """Where the request's history is the whole."""
    every = data.interactions(("user_id", "item_id", "rating", "timestamp"))
    whole = data.examples(cold_start=None, where=(pl.col("user_count") <= 10) & (pl.col("item_count") <= 10))
    assert whole.height > 60
    without = Predictor.from_pretrained(facts_dir)
    for row, trained in zip(whole.iter_rows(named=True), data.contexts(whole, FACTS), strict=True):
        request = as_request(trained)
        past = every.filter(pl.col("timestamp") < row["timestamp"])
        for entry, told in zip(row["user_history"], request["history"], strict=True):
            others = past.filter((pl.col("item_id") == entry["item_id"]) & (pl.col("user_id") != row["user_id"]))
            told |= {"average": others["rating"].mean(), "count": others.height}
        if past.height:
            request["usual"] = past["rating"].mean()
        request["item"]["hint"] = trained.standing.hint
        if request.get("user_average") is not None:
            request["user_count"] = trained.user_count
        for predictor in (without, shown) if past.height else (without,):
            assert prompts([predictor.context(read(PredictRequest, request))]) == prompts([trained])


def told(predictor: Predictor, **request: object) -> Standing:
    standing = predictor.context(read(PredictRequest, request)).standing
    assert standing is not None
    return standing


def test_what_can_not_be_worked_out_is_left_out(facts_dir):
    alone = Predictor.from_pretrained(facts_dir)
    history = [{"title": "a", "rating": 4, "average": 3.5, "count": 10}, {"title": "b", "rating": 2, "count": 0}]
    item = {"title": "c", "average": 4.0, "count": 15}
    full = told(alone, history=history, item=item, usual=3.0)
    # By hand: 60 + 5 * 3 over 20; residuals 4 - (35 + 15) / 15 and 2 - 3, the older weighing less.
    weights = [0.1 * (0.3 + 2.718281828 ** (-since / 10)) for since in (2, 1)]
    leaning = (weights[0] * (4 - 50 / 15) - weights[1]) / (sum(weights) + 2)
    assert full == Standing(3.75, pytest.approx(leaning), 1.0, None)

    assert told(alone, history=history, item=item) == Standing(None, None, 1.0, None)  # nothing to damp with
    assert (
        told(alone, history=history, item={"title": "c", "average": 4.0}, usual=3.0).item_mean is None
    )  # of how many?
    reviews = {"title": "c", "reviews": [{"rating": 5}] * 5}
    assert told(alone, history=[], item=reviews, usual=3.0) == Standing(4.0, None, None, None)
    assert told(alone, history=[], item={"title": "c"}, usual=3.0) == Standing(3.0, None, None, None)
    for entry in ({"title": "a", "rating": 4, "average": 3.5}, {"title": "a", "rating": 4, "count": 3}):
        assert told(alone, history=[history[0], entry], item=item, usual=3.0) == replace(
            full, affinity=None, spread=0.0
        )
    for part in ({"user_average": 3.0, "user_count": 40}, {"user_average": 3.0}):  # the history is not the whole
        assert told(alone, history=history, item=item, usual=3.0, **part) == replace(full, affinity=None, spread=None)
    one = told(
        alone, history=history[:1], item=item | {"hint": -0.5}, usual=3.0, user_count=9, user_average=3, user_spread=0.7
    )
    assert one == Standing(3.75, None, 0.7, -0.5)
    lines = prompts([alone.context(read(PredictRequest, {"history": history, "item": item}))])[0]
    assert "Average rating received: unknown (15 ratings)" in lines and "This user on such" not in lines


def test_items_of_which_nothing_is_told_and_the_usual_of_the_training(facts_dir, tmp_path):
    noted = tmp_path / "noted"
    shutil.copytree(facts_dir, noted)
    about = json.loads((noted / "reczero.json").read_text())
    (noted / "reczero.json").write_text(json.dumps(about | {"usual": 3.25}))
    history = [{"title": "a", "rating": 5}, {"title": "b", "rating": 4, "average": 3.5, "count": 10}]
    unrated = [history[0] | {"count": 0}, history[1]]
    plain = told(Predictor.from_pretrained(facts_dir), history=unrated, item={"title": "c"}, usual=3.25)
    assert plain.item_mean == 3.25 and plain.affinity > 0.1
    assert told(Predictor.from_pretrained(noted), history=history, item={"title": "c"}) == plain
    assert told(Predictor.from_pretrained(noted), history=history, item={"title": "c"}, usual=3.0).item_mean == 3.0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"usual": 6}, "usual: 6 is not on the scale"),
        ({"history": [{"title": "a", "rating": 3, "average": 0}]}, "history.0.average: 0 is not on the scale"),
        ({"user_spread": -1}, "user_spread"),
        ({"history": None, "user_id": "u1", "user_spread": 1}, "user_spread go with history"),
    ],
)
def test_mistakes_are_told(shown, more, says):
    with pytest.raises(BadRequest, match=says):
        shown.predict(**({"history": [], "item": {"title": "a"}} | more))


def test_ids_and_new_things_together(shown, data):
    known = Known(data, FACTS)
    (pair,) = known.contexts([(None, "i3")])
    entry = {"title": "a", "rating": 4, "average": 3.5, "count": 10}
    made = told(shown, history=[entry, entry], item_id="i3")
    assert (made.item_mean, made.spread, made.hint) == (pair.standing.item_mean, 0.0, None)
    assert (
        made.affinity
        == told(shown, history=[entry, entry], item={"title": "x"}, usual=known.usual).affinity
        is not None
    )
    new = told(shown, user_id="u1", item={"title": "x", "average": 4.0, "count": 15})
    assert new.item_mean == pytest.approx((60 + 5 * known.usual) / 20)
    assert replace(new, item_mean=None) == replace(known.user("u1").standing, item_mean=None)
    assert new.affinity is not None and new.spread is not None


def test_a_probe_takes_the_users_numbers_along(data):
    one, other = data.contexts(data.examples("test", limit=2), FACTS)
    swapped = _as_user(one, other)
    assert swapped.standing == replace(other.standing, item_mean=one.standing.item_mean) != one.standing
    nobody = _as_user(one, Context(one.item, standing=Standing()))
    assert nobody.standing == Standing(one.standing.item_mean) and nobody.item_history == one.item_history


def test_a_template_without_facts_has_contexts_without(predictor, data):
    assert predictor.context(read(PredictRequest, {"history": [], "item": {"title": "a"}, "usual": 3})).standing is None
    assert predictor.context(read(PredictRequest, {"user_id": "u1", "item_id": "i3"})).standing is None
    assert not any(context.standing for context in data.contexts(data.examples("test")))
