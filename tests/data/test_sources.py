"""MovieLens-100K in both layouts, whole and damaged, and where it is fetched from."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from reczero.data import PrepareSettings, Raw, find_source, prepare_source
from reczero.data.sources import movielens
from reczero.errors import UserError

SOURCE = find_source("ml-100k")
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
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "RATINGS", len(RATINGS))


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


def same(one: Raw, two: Raw) -> bool:
    return one.interactions.equals(two.interactions) and one.items.equals(two.items) and one.scale == two.scale


def test_both_layouts_and_both_containers_give_the_same_tables(tmp_path: Path) -> None:
    folder = official(tmp_path / "outer" / "ml-100k")
    read = SOURCE.read(folder)
    assert read.items["title"].to_list() == [
        "Toy Story (1995)", "Usual Suspects, The (1995)", "unknown", "Misérables, Les (1995)", "Alien (1979)"
    ]  # fmt: skip
    # Genres in the order of the flags, whichever way they are written; "unknown" is none.
    assert read.items["categories"].to_list()[:3] == [["Animation", "Children's", "Comedy"], ["Crime", "Thriller"], []]
    assert read.interactions.row(0) == ("196", "1", 3.0, 881250949)
    assert same(read, SOURCE.read(tmp_path / "outer"))
    assert same(read, SOURCE.read(zipped(folder, tmp_path / "ml-100k.zip")))
    other = SOURCE.read(packaged(tmp_path / "packaged"))
    assert other.interactions.equals(read.interactions)
    assert other.items["title"].equals(read.items["title"])
    assert [set(genres) for genres in other.items["categories"]] == [set(g) for g in read.items["categories"]]
    assert set(read.inputs) == {"u.data", "u.item", "u.genre"}


def _cut(name: str, count: int) -> Callable[[Path], object]:
    """Drop the last `count` bytes of a file."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-count])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_cut("u.data", 2), "u.data, line 4: not user, item, rating and time"),
        (_cut("u.data", 3), "u.data, line 4: 3 fields where 4"),
        (_cut("u.data", 5), "u.data, line 4: 2 fields where 4"),
        (_cut("u.data", 9), "holds 3 ratings, and MovieLens-100K has 4"),
        (_cut("u.item", 10), "u.item, line 5"),
        (lambda f: (f / "u.data").write_text("1\t1\t3\t5\n"), "holds 1 ratings"),
        (lambda f: (f / "u.data").write_text("1\t1\tgood\t5\n"), "u.data, line 1: not user, item, rating and time"),
        (lambda f: (f / "u.data").write_text("1,1,3,5\n"), "u.data, line 1: 1 fields where 4"),
        (lambda f: (f / "u.data").write_bytes(b"\xff\xfe\t1\t3\t5\n"), "u.data: not utf-8 text"),
        (lambda f: (f / "u.data").write_text(""), "u.data, line 1"),
        (lambda f: (f / "u.item").unlink(), "not MovieLens-100K; expected u.data and u.item"),
    ],
)
def test_damaged_folders_are_refused_with_the_line(harm: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    folder = official(tmp_path / "ml-100k")
    harm(folder)
    with pytest.raises(UserError, match=says) as caught:
        SOURCE.fetch(tmp_path / "cache", str(folder))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_damaged_and_missing_archives_are_refused(tmp_path: Path) -> None:
    archive = zipped(official(tmp_path / "ml-100k"), tmp_path / "ml-100k.zip")
    whole = archive.read_bytes()
    for content, says in (
        (whole[: len(whole) // 2], "not a zip archive, or cut short"),
        (whole[:60] + b"\0" * 20 + whole[80:], "cannot be read"),
        (b"user,item\n1,2\n", "not a zip archive"),
    ):
        archive.write_bytes(content)
        with pytest.raises(UserError, match=says):
            SOURCE.read(archive)
    with pytest.raises(UserError, match="no such file"):
        SOURCE.read(tmp_path / "nowhere.zip")


def test_unknown_source_gets_suggestions() -> None:
    with pytest.raises(UserError, match="did you mean ml-100k"):
        find_source("ml100k")
    with pytest.raises(UserError, match="known are: .*ml-100k"):
        find_source("zzzzzzzz")


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

    monkeypatch.setattr(movielens, "packaged_file", no_package)
    monkeypatch.setattr(movielens, "download", download)
    with pytest.raises(UserError, match="no index.*MD5 differs.*--archive"):
        SOURCE.fetch(tmp_path / "cache")
    assert asked == ["recbole==1.2.1", movielens.URL] and not (tmp_path / "cache").exists()

    monkeypatch.setattr(movielens, "MD5", movielens.hashlib.md5(archive, usedforsecurity=False).hexdigest())
    folder = SOURCE.fetch(tmp_path / "cache")
    assert folder == tmp_path / "cache" / "data" / "ml-100k" and len(SOURCE.read(folder).interactions) == 4
    asked.clear()
    assert SOURCE.fetch(tmp_path / "cache") == folder and not asked  # cached
    assert SOURCE.fetch(tmp_path / "cache", "https://example.org/ml-100k.zip") == folder
    assert asked == ["https://example.org/ml-100k.zip"]


def test_prepare_source_uses_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "home"))
    folder, out = official(tmp_path / "ml-100k"), tmp_path / "out"
    prepare_source("ml-100k", out, archive=str(folder))

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
def test_the_real_packaged_copy(ml_100k_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real number of ratings
    raw = SOURCE.read(ml_100k_files)
    assert raw.interactions.shape == (100_000, 4) and raw.items.height == 1682
    films = {item: (title, genres) for item, title, genres in raw.items.rows()}
    assert films["1"] == ("Toy Story (1995)", ["Animation", "Children's", "Comedy"])
    assert films["12"][0] == "Usual Suspects, The (1995)" and films["267"] == ("unknown", [])
    assert films["1412"][0] == "Land Before Time III: The Time of the Great Giving (1995) (V)"
    assert set().union(*(genres for _, genres in films.values())) == set(movielens.GENRES) - {"unknown"}
