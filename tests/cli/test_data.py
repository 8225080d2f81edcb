"""`reczero data`: what a user types and sees."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from reczero.cli.data import app
from reczero.data import PUBLISHED, PrepareSettings
from reczero.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small copy of ml-100k in the publisher's layout: 6 users rate 10 films, one a second."""
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(PUBLISHED, "ml-100k", dataclasses.replace(PUBLISHED["ml-100k"], rows=60))
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    flags = "|".join(["0", "1", *["0"] * 17])
    (folder / "u.item").write_text("".join(f"{n}|Film {n} (1995)|||link|{flags}\n" for n in range(10)))
    (folder / "u.data").write_text("".join(f"{n % 6}\t{n // 6}\t{1 + n % 5}\t{n}\n" for n in range(60)))
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object) -> str:
    result = run(*words)
    assert isinstance(result.exception, UserError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_list_shows_every_source() -> None:
    result = run("list")
    assert result.exit_code == 0 and "ml-100k" in result.output and "GroupLens" in result.output


def test_fetch_prepare_show(folder: Path, tmp_path: Path) -> None:
    assert run("fetch", "ml-100k", "--archive", folder).exit_code == 0
    assert (tmp_path / "home" / "data" / "ml-100k" / "u.data").is_file()
    out = tmp_path / "out"
    result = run("prepare", "ml-100k", "--out", out, "--history", 3, "--min-context", 4, "--train", 0.5, "--test", 0.4)
    assert result.exit_code == 0 and "6 users, 10 items" in result.output and "30 train" in result.output

    shown = run("show", out)
    assert shown.exit_code == 0, shown.output
    for expected in ("60 ratings by 6 users of 10 items, density 100.00%", "1970-01-01 00:00", "20.0%", "train"):
        assert expected in shown.output

    prompt = run("show", out, "--example", "3:9").output
    assert "rated 3 at 1970-01-01 00:00:57" in prompt and "--- system ---" in prompt
    assert "Film 9 (1995)" in prompt and "Film 8 (1995)" in prompt and "Film 5 (1995)" not in prompt


def test_prepare_writes_to_data_by_default(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("prepare", "ml-100k", "--archive", folder).exit_code == 0
    assert (tmp_path / "data" / "ml-100k" / "dataset.json").is_file()


def test_mistakes_are_one_line_and_leave_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "did you mean ml-100k" in refused("prepare", "ml100k", "--out", out)
    assert "no such file" in refused("prepare", "ml-100k", "--out", out, "--archive", tmp_path / "nothing.zip")
    said = refused("prepare", "ml-100k", "--out", out, "--history", 0, "--split", "latest")
    assert "--split" in said and "--history" in said and "(given: latest)" in said
    assert "must sum to 1" in refused("prepare", "ml-100k", "--out", out, "--train", 0.9)
    assert "k_core 50" in refused("prepare", "ml-100k", "--out", out, "--archive", folder, "--k-core", 50)
    assert not out.exists()
    assert "not a prepared data set" in refused("show", tmp_path)
    assert "no such folder" in refused("show", out)
    assert run("prepare", "ml-100k", "--out", out, "--reviews", folder).exit_code == 0
    assert "no example '1-2'" in refused("show", out, "--example", "1-2")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shop's two tables: 6 customers rate 10 products, one a minute, with comments; one rating is bad."""
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "shop"
    folder.mkdir()
    rows = [f"c{n % 6};p{n // 6};{1 + n % 5};2021-03-04 10:{n:02d};comment {n}\n" for n in range(60)]
    rows[7] = "c1;p1;plenty;2021-03-04 10:07;comment 7\n"
    (folder / "sales.csv").write_text("Customer ID;Product;Stars;Date;Comment\n" + "".join(rows))
    goods = "".join(f"p{n};Kettle {n};Kitchen|Tea\n" for n in range(10))
    (folder / "goods.csv").write_text("Product;Name;Category\n" + goods)
    return folder


def test_own_tables_are_guessed_and_the_guess_is_shown(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("prepare", "--reviews", shop / "sales.csv", "--items", shop / "goods.csv", "--out", out)
    assert "1 of 60 rows can't be used" in refused(*words) and not out.exists()
    result = run(*words, "--max-bad", 0.05)
    assert result.exit_code == 0, result.output
    for expected in (
        "columns: user=Customer ID, item=Product, rating=Stars, timestamp=Date, review=Comment (no summary)",
        "item columns: item_key=Product, title=Name, categories=Category",
        "times: dates",
        "scale: 1-5 by 1",
        "put aside: 1 rows of the interactions (rating is not a number 1)",
    ):
        assert expected in result.output
    assert "sales.csv" in (out / "quarantine.jsonl").read_text()
    prompt = run("show", out, "--example", "c3:p9").output
    assert "Kettle 9 | Kitchen, Tea" in prompt and "comment 56" in prompt and "comment 57" not in prompt


def test_columns_and_scale_can_be_settled(shop: Path, tmp_path: Path) -> None:
    said = refused("prepare", "--reviews", shop / "goods.csv", "--out", tmp_path / "out")
    assert "no column for user, rating, timestamp" in said and "Product, Name, Category" in said
    words = ("prepare", "--reviews", shop / "sales.csv", "--out", tmp_path / "out", "--max-bad", 0.1)
    assert "no such column: user=Cust" in refused(*words, "--columns", "user=Cust,item=Product")
    assert "no usr; its names are user" in refused(*words, "--columns", "usr=Customer ID")
    assert "write user=THEIRS" in refused(*words, "--columns", "user")
    assert "'5-1': not a rating scale" in refused(*words, "--scale", "5-1")
    assert "encoding 'utf-9'" in refused(*words, "--encoding", "utf-9")
    result = run(*words, "--columns", "user=Product,item=Customer ID", "--scale", "0-10:0.5")
    assert result.exit_code == 0 and "user=Product, item=Customer ID" in result.output
    assert "scale: 0-10 by 0.5" in result.output and "10 users, 6 items" in result.output


def test_a_recipe_says_it_all_and_options_say_more(shop: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"method: reczero\ndata:\n  source: table\n  reviews: {shop / 'sales.csv'}\n  items: {shop / 'goods.csv'}\n"
        "  max_bad: 0.05\n  split: leave-last-k\n  history: 3\n  min_context: 2\n"
        "rollout: {template: {history: 3, opinions: 2, instructions: brief}}\n"
    )
    for n, words in enumerate(([recipe], ["--recipe", recipe])):
        out = tmp_path / str(n)
        result = run("prepare", *words, "--out", out, "--leave-last", 2)
        assert result.exit_code == 0, result.output
        # 60 ratings less a bad one: 6 customers, 2 to test on and 2 to validate on each
        assert "35 train" in result.output and "12 validation" in result.output and "12 test" in result.output
    shown = run("show", out, "--example", "c3:p9", "--recipe", recipe).output
    assert shown.count("Kettle") == 4 and "You predict how a user will rate an item." in shown


def test_random_warns_that_it_leaks(shop: Path, tmp_path: Path) -> None:
    untimed = shop / "untimed.csv"
    rows = (line.split(";") for line in (shop / "sales.csv").read_text().splitlines())
    untimed.write_text("".join(f"{u},{i},{r}\n" for u, i, r, *_ in rows))
    words = ("prepare", "--reviews", untimed, "--out", tmp_path / "out", "--max-bad", 0.05)
    said = refused(*words)
    assert "no column for the time" in said and "--split random" in said
    result = run(*words, "--split", "random")
    assert result.exit_code == 0 and "warning: split random leaks" in result.stderr
    shown = run("show", tmp_path / "out").output
    assert "no times" in shown and "1970" not in shown
    assert "1970" not in run("show", tmp_path / "out", "--example", "c3:p9").output


def test_show_counts_the_tokens_of_a_model(shop: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    run("prepare", "--reviews", shop / "sales.csv", "--out", tmp_path / "out", "--max-bad", 0.05)
    shown = run("show", tmp_path / "out").output
    assert "characters" in shown and "add --model NAME" in shown
    shown = run("show", tmp_path / "out", "--model", tiny_model_dir).output
    assert "tokens of" in shown and "add --model" not in shown


def test_fetch_says_what_to_download_and_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "home"))
    result = run("fetch", "yelp")
    assert isinstance(result.exception, UserError)
    for expected in (
        "business.yelp.com",
        str(tmp_path / "home" / "data" / "yelp" / "yelp_academic_dataset_review.json"),
    ):
        assert expected in str(result.exception)
    assert "did you mean yelp" in refused("fetch", "yelb")


def test_help_states_the_true_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = {line.split()[1]: line for line in run("prepare", "--help").output.splitlines() if "--" in line}
    for name, field in PrepareSettings.model_fields.items():
        assert f"[default: ({field.default})]" in shown["--" + name.replace("_", "-")]


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, reczero.cli.data; sys.exit(any(m in sys.modules for m in ('polars', 'pydantic', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
