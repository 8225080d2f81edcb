"""The report of a comparison: every section, nothing that is not in the files, and as closed as that of a run."""

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from random_data import SCALE, made
from test_report import HOSTILE, Page

from reczero.data import Dataset, PrepareSettings, prepare
from reczero.errors import UserError
from reczero.evaluation.asking import Plan
from reczero.evaluation.report import write_report
from reczero.evaluation.study import study
from reczero.rollout.language_model import LanguageModel

AVERAGES = ("global-mean", "global-median", "user-average", "additive")
TEMPLATE = {"instructions": "brief", "history": 1, "opinions": 0, "section_tokens": 3}


class Probed(LanguageModel):
    """The tiny model, with probes made up: what a random one writes cannot always be handed back to it."""

    def probed(self, examples, seed, progress):
        def answers(name: str, number: float) -> pl.DataFrame:
            return examples.select(
                "example_id",
                probe=pl.lit(name),
                prediction=pl.lit(number),
                distribution=pl.lit([0.1, 0.2, 0.4, 0.2, 0.1], dtype=pl.List(pl.Float64)),
            )

        return pl.concat([answers("unaltered", 3.0), answers("own-reasoning", 3.0), answers("other-reasoning", 4.25)])


def compared(data: Dataset, out: Path, **plan) -> Path:
    settings = {"baselines": AVERAGES, "min_user_history": 2, "min_item_history": 2, "rounds": 100}
    study(
        data, out, Plan(**{**settings, **plan}), lambda said: None, lambda done: None, "reczero compare data --seed 0"
    )
    return out


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory, tiny_model_dir) -> Path:
    """A language model with decodings and probes, somebody's predictions, and a baseline with probabilities."""
    folder = tmp_path_factory.mktemp("whole")
    data = Dataset.open(table)
    shutil.copytree(tiny_model_dir, folder / "tiny")
    (folder / "tiny" / "reczero.json").write_text(json.dumps({"rollout": {"guided": True, "template": TEMPLATE}}))
    test = data.examples("test", cold_start=None)
    return compared(
        data,
        folder / "out",
        models={"tiny": [Probed.open(str(folder / "tiny"), data)]},
        given={"theirs": test.select("example_id", prediction="rating")[: test.height // 2]},
        baselines=(*AVERAGES, "boosting-classes"),
        validation=10,
        samples=2,
        min_item_history=8,
        probe=6,
        anonymise=True,
    )


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def test_a_whole_report(copy):
    found = json.loads((copy / "comparison.json").read_text())
    page = Page(write_report(copy))
    rows = {line["model"]: line for line in found["comparison"]}
    own = min(("theirs", found["decoding"]["tiny"]["best"]["mae"]), key=lambda name: rows[name]["mae"])
    assert f"{own} errs by {rows[own]['mae']:.3f} rating points on average" in page.text
    headings = [
        "Comparison", "Pairs", "Decoding", "Slices", "Cold starts", "Calibration", "Predicted and true ratings",
        "Probes: is the reasoning real?", "Test examples", "Settings",
    ]  # fmt: skip
    places = [page.text.index(f"\n  {heading}\n") for heading in headings]
    assert places == sorted(places)
    for said in (
        "theirs: may have seen the truth",  # the warning
        found["data"]["fingerprint"][:12],
        "reczero compare data --seed 0",
        "Macro MAE", "RPS", "Tokens", "chosen for MAE", "tiny, 10 validation rows", "tiny, 6 rows",
        "The reasoning is what it wrote about another row.", "User's earlier ratings", "History shown",
        "comparison.json", "predictions/tiny.parquet",
    ):  # fmt: skip
        assert said in page.text, said
    for line in (*found["comparison"], *found["cold_start"], *found["probes"]["tiny"]):
        assert f"{line['mae']:.3f}" in page.text
    kinds = {line["slice"] for line in found["slices"]}
    # Heat maps of tiny and theirs, one histogram, and the curves of tiny and boosting-classes.
    assert [tag for tag, _ in page.tags].count("svg") == len(kinds) + 2 + 1 + 2
    tables = [a for tag, a in page.tags if tag == "table" and "sortable" in (a.get("class") or "")]
    assert len(tables) == 1 + len({pair["model"] for pair in found["pairs"]}) + 1 + len(kinds) + 1 + 1


def test_examples_to_browse(copy):
    page = Page(write_report(copy))
    island = page.island
    shown = pl.read_parquet(copy / "test_examples.parquet")
    assert island["models"] == ["tiny", "theirs"] and island["prompt_of"] == "tiny"
    assert len(island["examples"]) == shown.height and island["grid"] == [1, 2, 3, 4, 5]
    kinds = {kind for kind, _ in island["groups"]}
    assert kinds >= {"user's earlier ratings", "item's earlier ratings"}
    for example, row in zip(island["examples"], shown.iter_rows(named=True), strict=True):
        assert example["user_id"].startswith("user-") and example["prompt"]
        told = {island["groups"][k][1] for k in example["in"] if island["groups"][k][0] == "user's earlier ratings"}
        count = row["user_count"]
        assert told == {"0" if count == 0 else "1–4" if count < 5 else "5–19" if count < 20 else "20+"}
        assert sum(example["given"]["tiny"]["distribution"]) == pytest.approx(1, abs=0.01)
        assert "distribution" not in example["given"]["theirs"]
    assert any(example["given"]["theirs"]["rating"] is None for example in island["examples"])
    assert island["fallback"] == json.loads((copy / "comparison.json").read_text())["fallback"]


def test_every_table_can_be_sorted(copy):
    page = Page(write_report(copy))
    orders = {a.get("data-best") for tag, a in page.tags if tag == "th" and a.get("scope") == "col"}
    assert orders <= {"ascending", "descending", None}
    for tag, attributes in page.tags:
        if tag == "td" and "data-value" in attributes:
            float(attributes["data-value"] or "")


def test_nothing_is_loaded_and_hostile_text_stays_text(tmp_path):
    plain = made(tmp_path, rows=400)
    items = plain.items(("item_id", "title", "categories")).with_columns(
        title=pl.lit(HOSTILE), categories=pl.lit([HOSTILE, "電影\n\x07"], dtype=pl.List(pl.String))
    )
    ratings = plain.interactions(("user_id", "item_id", "rating", "timestamp"))
    data = prepare(ratings, items, SCALE, tmp_path / "hostile", PrepareSettings())
    page = Page(write_report(compared(data, tmp_path / "out")))
    assert len(page.scripts) == 2 and "<" not in page.scripts[0]
    for tag, attributes in page.tags:
        assert tag != "img" and attributes.get("id") != "hostile" and "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    assert {group for kind, group in page.island["groups"] if kind == "category"} == {*items["categories"][0]}
    assert page.island["examples"][0]["title"].startswith("</script>")


def test_baselines_alone_and_no_cold_starts(tmp_path):
    data = made(tmp_path, rows=400, min_context=0)
    out = compared(data, tmp_path / "out", min_user_history=0, min_item_history=0)
    found = json.loads((out / "comparison.json").read_text())
    best = min(found["comparison"], key=lambda line: line["mae"])["model"]
    page = Page(write_report(out))
    assert found["rows"]["cold_start"] == 0 and "There are no cold starts" in page.text
    assert f"The best baseline, {best}, errs by" in page.text and "additive-rounded" in page.text
    assert len(page.island["models"]) == 3 and set(page.island["models"]) <= set(AVERAGES)
    assert not {"Decoding", "Probes: is the reasoning real?"} & {line.strip() for line in page.text.splitlines()}
    assert "No entry gives probabilities." in page.text


def test_written_twice_it_is_the_same(copy):
    assert write_report(copy).read_bytes() == write_report(copy).read_bytes()


@pytest.mark.parametrize(
    ("gone", "says"),
    [("test_examples.parquet", "No predictions to draw"), ("predictions", "No test examples with predictions here")],
)
def test_whatever_is_missing_the_rest_is_told(copy, gone, says):
    shutil.rmtree(copy / gone) if (copy / gone).is_dir() else (copy / gone).unlink()
    text = Page(write_report(copy)).text
    assert says in text and "chosen for MAE" in text


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}", '{"data": {}}', "pairs", "comparison", "settings"])
def test_a_broken_comparison_is_one_clear_error(copy, broken):
    before = write_report(copy).read_bytes()
    path = copy / "comparison.json"
    if broken.isalpha():
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | {broken: {} if broken == "settings" else [{"model": "tiny"}]}))
    else:
        path.write_text(broken)
    with pytest.raises(UserError, match="comparison.json"):
        write_report(copy)
    assert (copy / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (-0.3, -0.1, ": 0.200 less."),
        (0.1, 0.3, ": 0.200 more."),
        (-0.1, 0.5, ": no clear difference."),
        (None, None, "."),
    ],
)
def test_the_headline_is_true_whatever_came_of_it(copy, low, high, says):
    path = copy / "comparison.json"
    found = json.loads(path.read_text())
    mae = 0.0 if low is None else (low + high) / 2
    for pair in found["pairs"]:
        pair |= {"mae": mae, "mae_low": low, "mae_high": high}
    path.write_text(json.dumps(found))
    page = Page(write_report(copy))
    headline = page.text[page.text.index(" errs by ") :].splitlines()[0]
    assert "the best baseline" in headline and re.search(rf"by \d\.\d\d\d{re.escape(says)}$", headline)
