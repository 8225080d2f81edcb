"""`reczero data`: what a user types and sees."""

import dataclasses
import json
import re
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


def test_a_reviews_headline_never_becomes_an_items_title(shop: Path, tmp_path: Path) -> None:
    """One file for both: what belongs to the rating must not describe the item, or the future is in the prompt."""
    both = shop / "both.csv"
    rows = [f"u{n % 6},i{n // 6},{1 + n % 5},{n},headline {n},Kettle {n // 6}\n" for n in range(60)]
    both.write_text("user,item,rating,timestamp,title,product\n" + "".join(rows))
    words = ("prepare", "--reviews", both, "--items", both, "--out", tmp_path / "out")
    assert "no column for title" in refused(*words)
    assert "10 items are described in more than one way" in refused(*words, "--columns", "title=title")
    assert run(*words, "--columns", "title=product").exit_code == 0
    prompt = run("show", tmp_path / "out", "--example", "u3:i9").output
    assert "Kettle 9" in prompt and "headline" not in prompt
    lines = shop / "a23.jsonl"
    row = {"user_id": "u", "parent_asin": "i", "rating": 4.0, "timestamp": 10**12, "title": "mine", "text": "t"}
    lines.write_text(json.dumps(row) + "\n")
    said = refused("prepare", "--source", "amazon2023", "--reviews", lines, "--items", lines, "--out", tmp_path / "o")
    assert "holds reviews, not items" in said


def test_what_was_dropped_or_does_not_meet_is_told(shop: Path, tmp_path: Path) -> None:
    with (shop / "sales.csv").open("a") as file:
        file.write("c1 ;p0;5;2021-03-05 10:00;a repeat, with a space after the id\n")
    words = ("prepare", "--reviews", shop / "sales.csv", "--out", tmp_path / "out", "--max-bad", 0.05)
    (shop / "goods.csv").write_text("Product;Name\nsku1;Kettle\n")
    result = run(*words, "--items", shop / "goods.csv")
    assert result.exit_code == 0, result.output
    assert "repeats: 1 of 60 rows dropped" in result.output and "6 users" in result.output
    assert "warning: 10 of 10 items have no title; do the ids" in result.stderr
    assert "times: dates, 2021-03-04 10:00 to 2021-03-04 10:59" in result.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--columns", "user=Product,item=Product"), "Product can't be two things"),
        (("--columns", "user=Product,user=Stars"), "names one of our columns twice"),
        (("--columns", "title=Product"), "describe items; name their table"),
        (("--time-format", "d/m/Y"), "time format 'd/m/Y'"),
        (("--time-format", "%Q"), "time format '%Q'"),
        (("--encoding", "idna"), "encoding 'idna'"),
        (("--encoding", "undefined"), "encoding 'undefined'"),
        (("--history", 10**20), "--history"),
        (("--scale", "1-5:0.3"), "not a rating scale"),
        (("--split", "leave-last-k", "--leave-last", 0), "--leave-last"),
        (("--items", "."), "is a folder; name the file"),
        (("--source", "movielens", "--reviews", "."), "no MovieLens in it"),
        (("--source", "amazon2018"), "no reviewerID, asin, overall, unixReviewTime"),
    ],
)
def test_impossible_wishes_are_told(words: tuple[object, ...], says: str, shop: Path, tmp_path: Path) -> None:
    base = ("prepare", "--reviews", shop / "sales.csv", "--out", tmp_path / "out", "--max-bad", 0.05)
    assert says in refused(*base, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "user;item;rating;time\nu;i;4;04/03/2021\n" * 3, "('04/03/2021').*--time-format"),
        ("a.csv", "user;item;rating;time\nu;i;4 of 5;2021-03-04\n", "rating is not a number: 1 .*: '4 of 5'"),
        ("a.csv", b"user;item;rating;time\nu;\xe9;4;2021-03-04\n", "--encoding"),
        ("a.json", '{\n  "user": 1\n}\n', "JSON over several lines"),
        ("a.json", '[{"user": 1}]', "a JSON array"),
        ("a.bin", b"\x7fELF\x00\x00\x00\x01\x00", "is not text"),
        ("a.csv", "user,user,item,rating,time\nu,v,i,4,5\n", "two columns called user"),
        ("a.csv", "u\x1b[31m,b\n1,2\n", "no column for user, item, rating, timestamp"),
        ("a.csv", "user,item,rating,time\n", "no rows"),
        ("a.csv", "", "is empty"),
    ],
)
def test_files_that_are_no_table_are_told(name: str, content: str | bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(says, refused("prepare", "--reviews", tmp_path / name, "--out", tmp_path / "out"))


def test_a_decimal_comma_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user;item;rating;date\n" + "".join(f"u;i{n};{n},5;2021-03-0{n}\n" for n in (1, 4)))
    assert "scale: 1-5 by 0.5" in run("prepare", "--reviews", tmp_path / "a.csv", "--out", tmp_path / "out").output


def test_out_may_be_a_link(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        words = (
            "prepare",
            "--reviews",
            shop / "sales.csv",
            "--out",
            tmp_path / "link",
            "--max-bad",
            0.05,
            "--history",
            7,
        )
        assert run(*words).exit_code == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "dataset.json").is_file()
    assert not list(tmp_path.glob(".tmp*"))


def test_changed_files_are_not_shown(shop: Path, tmp_path: Path) -> None:
    run("prepare", "--reviews", shop / "sales.csv", "--out", tmp_path / "out", "--max-bad", 0.05)
    path = tmp_path / "out" / "examples.parquet"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    assert "changed after they were prepared" in refused("show", tmp_path / "out")


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
