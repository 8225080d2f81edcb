"""Data sets known by name: where they are fetched from, put, and checked; MovieLens-100K in both of its layouts."""

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from reczero.data import PUBLISHED, SOURCES, Dataset, Origin, PrepareSettings, prepare_source
from reczero.data.sources import movielens, published
from reczero.errors import UserError

FLAGS = {name: n for n, name in enumerate(movielens.GENRES)}
FILMS = [
    ("1", "Toy Story", "1995", "Animation Children's Comedy"),
    ("12", "Usual Suspects, The", "1995", "Crime Thriller"),
    ("267", "unknown", "", ""),
    ("543", "Misérables, Les", "1995", "Drama Musical"),
    ("99", "Alien", "1979", "Sci-Fi Film-Noir"),
]
RATINGS = [("196", "1", 3, 881250949), ("22", "12", 1, 878887116), ("196", "543", 5, 881250949), ("7", "99", 4, 9)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ml-100k has four ratings here, and the cache is a new one."""
    monkeypatch.setitem(PUBLISHED, "ml-100k", dataclasses.replace(PUBLISHED["ml-100k"], rows=len(RATINGS)))
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "home"))


def official(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for item, title, year, genres in FILMS:
        flags = ["0"] * 19
        for genre in genres.split() or ["unknown"]:
            flags[FLAGS[genre]] = "1"
        released = [f"{title} ({year})", f"01-Jan-{year}", "", "http://link"] if year else [title, "", "", ""]
        lines.append("|".join([item, *released, *flags]))
    (folder / "u.item").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    (folder / "u.genre").write_text("".join(f"{name}|{n}\n" for name, n in FLAGS.items()) + "\n")
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in RATINGS))
    return folder


def packaged(folder: Path) -> Path:
    folder.mkdir(parents=True)
    films = [(i, t, y, g) if y else (i, "unkonwn", "unkonwn", "unknown") for i, t, y, g in FILMS]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    (folder / "ml-100k.item").write_text(header + "\n".join("\t".join(film) for film in films), encoding="utf-8")
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "ml-100k.inter").write_text(header + "".join("\t".join(map(str, row)) + "\n" for row in RATINGS))
    return folder


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"ml-100k/{file.name}")
    return path


def prepared(reviews: Path, out: Path) -> Dataset:
    return prepare_source(Origin(source="movielens", reviews=str(reviews)), out)


def content(dataset: Dataset) -> tuple[pl.DataFrame, pl.DataFrame]:
    return pl.read_parquet(dataset.path / "interactions.parquet"), pl.read_parquet(dataset.path / "items.parquet")


def test_both_layouts_and_both_containers_give_the_same_tables(tmp_path: Path) -> None:
    folder = official(tmp_path / "outer" / "ml-100k")
    dataset = prepared(folder, tmp_path / "one")
    ratings, items = content(dataset)
    titles = dict(items.select("item_id", "title").rows())
    assert titles == {
        "1": "Toy Story (1995)", "12": "Usual Suspects, The (1995)", "267": "unknown", "543": "Misérables, Les (1995)",
        "99": "Alien (1979)",
    }  # fmt: skip
    # Genres in the order of the flags, whichever way they are written; "unknown" is none.
    genres = dict(items.select("item_id", "categories").rows())
    assert genres["1"] == ["Animation", "Children's", "Comedy"] and genres["267"] == []
    assert ratings.select("user_id", "item_id", "rating", "timestamp").rows() == [
        ("7", "99", 4.0, 9), ("22", "12", 1.0, 878887116), ("196", "1", 3.0, 881250949), ("196", "543", 5.0, 881250949)
    ]  # fmt: skip
    others = (tmp_path / "outer", zipped(folder, tmp_path / "ml-100k.zip"))
    for n, other in enumerate(others):
        assert all(
            a.equals(b) for a, b in zip(content(prepared(other, tmp_path / f"o{n}")), (ratings, items), strict=True)
        )
    ours, films = content(prepared(packaged(tmp_path / "packaged"), tmp_path / "two"))
    assert ours.equals(ratings) and films["title"].equals(items["title"])
    assert [set(genres) for genres in films["categories"]] == [set(genres) for genres in items["categories"]]
    assert set(dataset.info["inputs"]) == {"u.data", "u.item", "u.genre"}


def _cut(name: str, count: int) -> Callable[[Path], object]:
    """Drop the last `count` bytes of a file."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-count])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_cut("u.data", 2), r"no time: 1 \(first: u.data, line 4"),
        (_cut("u.data", 3), r"wrong number of fields: 1 \(first: u.data, line 4"),
        (_cut("u.data", 9), "holds 3 ratings, and ml-100k has 4"),
        (_cut("u.item", 10), r"items: 1 of 5 .* wrong number of fields: 1 \(first: u.item, line 5"),
        (lambda f: (f / "u.data").write_text("1\t1\t3\t5\n"), "holds 1 ratings"),
        (lambda f: (f / "u.data").write_text("1\t1\tgood\t5\n" * 4), "rating is not a number"),
        (lambda f: (f / "u.data").write_text("1,1,3,5\n" * 4), "no #2, #3, #4; there are #1"),
        (lambda f: (f / "u.data").write_bytes(b"\xff\xfe\t1\t3\t5\n" * 4), "UTF-16|not UTF-8"),
        (lambda f: (f / "u.data").write_text(""), "holds 0 ratings|is empty"),
        (lambda f: (f / "u.item").unlink(), "expected u.data and u.item"),
    ],
)
def test_damaged_folders_are_refused_with_the_line(harm: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    folder = official(tmp_path / "ml-100k")
    harm(folder)
    with pytest.raises(UserError, match=says) as caught:
        PUBLISHED["ml-100k"].fetch(tmp_path / "cache", str(folder))
        prepare_source(Origin(dataset="ml-100k", reviews=str(folder)), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_copy_with_other_than_its_ratings_never_replaces_the_cached_one(tmp_path: Path) -> None:
    known = PUBLISHED["ml-100k"]
    folder = official(tmp_path / "ml-100k")
    cached = known.fetch(tmp_path / "cache", str(folder)).reviews
    _cut("u.data", 9)(folder)
    with pytest.raises(UserError, match="holds 3 ratings"):
        known.fetch(tmp_path / "cache", str(folder))
    assert len((cached / "u.data").read_text().splitlines()) == 4


def test_damaged_and_missing_archives_are_refused(tmp_path: Path) -> None:
    archive = zipped(official(tmp_path / "ml-100k"), tmp_path / "ml-100k.zip")
    whole = archive.read_bytes()
    for harmed, says in (
        (whole[: len(whole) // 2], "cannot be read"),
        (whole[:60] + b"\0" * 20 + whole[80:], "cannot be read"),
        (b"user,item\n1,2\n", "not ratings of MovieLens"),
    ):
        archive.write_bytes(harmed)
        with pytest.raises(UserError, match=says) as caught:
            prepared(archive, tmp_path / "out")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        prepared(tmp_path / "nowhere.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_names_get_suggestions(tmp_path: Path) -> None:
    for origin, says in (
        (Origin("ml100k"), "did you mean ml-100k"),
        (Origin("zzzzzzzz"), "known are: .*ml-100k.*table"),
        (Origin(source="amazon2019", reviews="x"), "did you mean amazon2018"),
        (Origin("amazon2018"), "name its files with --reviews"),
        (Origin(source="table"), "name its files with --reviews"),
    ):
        with pytest.raises(UserError, match=says):
            prepare_source(origin, tmp_path / "out")


def test_fetch_tries_the_package_then_the_publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(official(tmp_path / "ml-100k"), tmp_path / "ml-100k.zip").read_bytes()
    asked: list[str] = []

    def no_package(package: str, version: str, members: dict[str, str], into: Path) -> Path:
        asked.append(f"{package}=={version}")
        raise UserError("no index.")

    def download(url: str, path: Path, digest: str | None = None) -> Path:
        asked.append(url)
        path.write_bytes(archive)
        return path

    monkeypatch.setattr(published, "packaged_file", no_package)
    monkeypatch.setattr(published, "download", download)
    known = PUBLISHED["ml-100k"]
    with pytest.raises(UserError, match="no index.*MD5 differs.*put it at"):
        known.fetch(tmp_path / "cache")
    assert asked == ["recbole==1.2.1", known.reviews.url]
    assert not list((tmp_path / "cache").rglob("*.zip"))

    digest = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    known = dataclasses.replace(known, reviews=known.reviews._replace(md5=digest))
    given = known.fetch(tmp_path / "cache")
    assert given.reviews == tmp_path / "cache" / "data" / "ml-100k" / "ml-100k.zip"
    assert len(content(prepared(given.reviews, tmp_path / "out"))[0]) == 4
    asked.clear()
    assert known.fetch(tmp_path / "cache") == given and not asked  # cached
    assert known.fetch(tmp_path / "cache", "https://example.org/ml-100k.zip") == given
    assert asked == ["https://example.org/ml-100k.zip"]


def test_two_files_are_fetched_and_what_has_no_address_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, path: Path, digest: str | None = None) -> Path:
        path.write_text('{"a": 1}\n')
        return path

    monkeypatch.setattr(published, "download", download)
    given = PUBLISHED["amazon-music"].fetch(tmp_path)
    assert given.reviews.name == "Digital_Music_5.json.gz" and given.items is not None
    assert given.items.name == "meta_Digital_Music.json.gz" and PUBLISHED["amazon-music"].there(tmp_path) == given
    for name in ("yelp", "imdb"):
        known = PUBLISHED[name]
        with pytest.raises(UserError) as caught:
            known.fetch(tmp_path)
        assert known.home in str(caught.value)
        for part in known.parts:
            place = tmp_path / "data" / name / part.file
            assert str(place) in str(caught.value)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text('{"a": 1}\n')
        assert known.fetch(tmp_path).reviews.is_file()  # once it lies there, it is found


def test_every_data_set_names_a_source_and_how_to_get_it() -> None:
    for name, known in PUBLISHED.items():
        assert known.name == name and known.source in SOURCES
        assert name in known.how_to_get and known.licence and known.size and known.scale and known.home


def test_prepare_source_uses_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    PUBLISHED["ml-100k"].fetch(tmp_path / "home", str(official(tmp_path / "ml-100k")))
    prepare_source("ml-100k", out)

    def stamp() -> int:
        return (out / "dataset.json").stat().st_ino

    first = stamp()
    prepare_source("ml-100k", out)
    assert stamp() == first  # same files, same settings: untouched
    prepare_source("ml-100k", out, PrepareSettings(history=5))
    second = stamp()
    assert second != first
    whole = (out / "items.parquet").read_bytes()
    (out / "items.parquet").write_bytes(whole[:-9])
    assert prepare_source("ml-100k", out, PrepareSettings(history=5)).is_intact()  # damaged: made anew
    assert (out / "items.parquet").read_bytes() == whole


@pytest.mark.network
def test_the_real_packaged_copy(ml_100k: Dataset) -> None:
    ratings, items = content(ml_100k)
    assert ratings.height == 100_000 and items.height == 1682
    films = {item: (title, genres) for item, title, genres in items.select("item_id", "title", "categories").rows()}
    assert films["1"] == ("Toy Story (1995)", ["Animation", "Children's", "Comedy"])
    assert films["12"][0] == "Usual Suspects, The (1995)" and films["267"] == ("unknown", [])
    assert films["1412"][0] == "Land Before Time III: The Time of the Great Giving (1995) (V)"
    assert set().union(*(genres for _, genres in films.values())) == set(movielens.GENRES) - {"unknown"}
