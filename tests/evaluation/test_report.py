"""The report is one page that stands alone, says what is true, and cannot be broken out of."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from reczero.errors import UserError
from reczero.evaluation.compare import MOST_EXAMPLES
from reczero.evaluation.report import write_report

HOSTILE = "</script><img src=x onerror=alert(1)> <b id='hostile'>&amp; ]]> <!-- \u202e evil \u2028 {{ 7 * 7 }} $x$"
VOID = {"meta", "input", "br", "img", "path", "use", "link"}


class Page(HTMLParser):
    """Every tag with its attributes, all scripts' contents, all visible text; asserts that tags nest."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif self._open and self._open[-1] != "style":
            self.text += data

    @property
    def island(self) -> dict:
        return json.loads(self.scripts[0])


def test_a_whole_report(make_run: Callable[..., Path]):
    run = make_run()
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("svg") == 5  # two curves, a heat map for each model, one histogram
    for said in (
        "Training took the average error from",
        "reczero against untrained on 200 test rows: MAE",
        "reczero",
        "global-median",
        "smollm2-135m",
    ):
        assert said in page.text
    assert "9 min 49 s" in page.text  # the stages' seconds, summed
    assert len(page.island["examples"]) == 200 and page.island["models"] == ["reczero", "untrained"]
    example = page.island["examples"][5]
    assert list(example["given"]["reczero"]["reasoning"]) == ["analyze_user", "analyze_item", "match"]  # in this order
    assert example["prompt"].startswith("You predict ratings.")
    assert page.island["examples"][0]["given"]["reczero"]["rating"] is None  # a failure stays one
    assert path.stat().st_size < 1_000_000


def test_nothing_is_loaded_from_anywhere(make_run: Callable[..., Path]):
    page = Page(write_report(make_run()))
    for _, attributes in page.tags:
        assert "src" not in attributes
        assert all((attributes.get(key) or "#").startswith("#") for key in ("href", "xlink:href"))
        assert not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and re.search(r"script-src 'sha256-[\w+/=]+';", policy)


def test_hostile_text_stays_text(make_run: Callable[..., Path]):
    run = make_run(text=HOSTILE)
    page = Page(write_report(run))
    assert len(page.scripts) == 2
    assert not [tag for tag, a in page.tags if tag == "img" or a.get("id") == "hostile"]
    example = page.island["examples"][7]
    assert example["title"].endswith(HOSTILE) and example["prompt"].endswith(HOSTILE)
    assert example["given"]["reczero"]["reasoning"]["match"].endswith(HOSTILE)
    assert "<" not in page.scripts[0]
    assert "{{ 7 * 7 }}" in page.text  # shown by the settings, not computed


def test_hostile_names_of_models(make_run: Callable[..., Path]):
    run = make_run()
    name = "x\"><b id='hostile'>$y"
    (run / "predictions" / "reczero.parquet").rename(run / "predictions" / f"{name}.parquet")
    page = Page(write_report(run))
    assert not [tag for tag, a in page.tags if a.get("id") == "hostile"]
    assert name in page.island["models"]


def test_written_twice_it_is_the_same(make_run: Callable[..., Path]):
    run = make_run()
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        (["metrics.jsonl"], "No curves"),
        (["completions.parquet"], "Comparison"),
        (["test_examples.parquet"], "No test examples"),
        (["comparison.csv"], "No trained model was compared"),
        (["run.json"], "reczero"),
        (["recipe.yaml"], "Comparison"),
        (["predictions/reczero.parquet", "predictions/untrained.parquet"], "No predictions to draw"),
        (["predictions/global-median.parquet"], "the median of the training ratings"),
    ],
)
def test_whatever_is_missing_the_rest_is_told(make_run: Callable[..., Path], gone: list[str], says: str):
    run = make_run()
    for name in gone:
        (run / name).unlink()
    assert says in Page(write_report(run)).text


def test_an_empty_run_and_zero_examples(make_run: Callable[..., Path], tmp_path: Path):
    run = make_run(rows=0)
    (run / "metrics.jsonl").write_text("")
    page = Page(write_report(run))
    assert page.island["examples"] == [] and "No test examples" in page.text
    with pytest.raises(UserError, match="not the folder of a run"):
        write_report(tmp_path)


def test_no_answer_at_all_and_one_user(make_run: Callable[..., Path]):
    run = make_run(failures=200)
    assert "0.0\u00a0% of its answers had a valid form" in Page(write_report(run)).text
    examples = pl.read_parquet(run / "test_examples.parquet").with_columns(user_id=pl.lit("u"))
    examples.write_parquet(run / "test_examples.parquet")
    assert "too few users" in Page(write_report(run)).text


def test_a_worse_model_is_said_to_be_worse(make_run: Callable[..., Path]):
    run = make_run()
    table = (run / "comparison.csv").read_text()
    swapped = table.replace("reczero,", "x,").replace("untrained,", "reczero,").replace("x,", "untrained,")
    (run / "comparison.csv").write_text(swapped)
    for name, other in (("reczero", "x"), ("untrained", "reczero"), ("x", "untrained")):
        (run / "predictions" / f"{name}.parquet").rename(run / "predictions" / f"{other}.parquet")
    text = Page(write_report(run)).text
    assert "\u00a0% more." in text
    assert re.search(r"reczero against untrained on 200 test rows: MAE \+.* higher", text)


def test_many_examples_are_thinned_and_the_page_says_so(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    assert MOST_EXAMPLES >= 200
    monkeypatch.setattr("reczero.evaluation.compare.MOST_EXAMPLES", 50)
    page = Page(write_report(make_run()))
    assert len(page.island["examples"]) == 50 and "50 of 200" in page.text


@pytest.mark.parametrize(
    ("name", "content"),
    [("run.json", "{"), ("recipe.yaml", "a: ["), ("metrics.jsonl", '{"step": 1}\n{"st'), ("completions.parquet", "no")],
)
def test_broken_files_are_named_and_the_old_report_stays(make_run: Callable[..., Path], name: str, content: str):
    run = make_run()
    before = write_report(run).read_bytes()
    (run / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(name)):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not [path for path in run.iterdir() if "tmp" in path.name or path.name.startswith(".")]
