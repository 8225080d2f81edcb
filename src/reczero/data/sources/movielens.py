"""MovieLens-100K (GroupLens, 1998): 100,000 ratings of 1,682 films by 943 users; real time stamps, titles, genres.

Two layouts hold the same data: the publisher's archive (`u.data`, `u.item`), and the copy that the package RecBole
carries (`ml-100k.inter`, `ml-100k.item`), which a machine with a package index but no web can get.
"""

import hashlib
import re
import tempfile
import zipfile
import zlib
from pathlib import Path

import polars as pl

from reczero.errors import UserError
from reczero.fetch import download, packaged_file
from reczero.files import atomic_dir
from reczero.files import sha256 as file_sha256
from reczero.reasoning import Scale

from .base import Raw, Source

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
MD5 = "0e33842e24a9c977be4e0107933c0723"  # as published beside the archive
PACKAGE, VERSION = "recbole", "1.2.1"
MEMBERS = {
    "recbole/dataset_example/ml-100k/ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "recbole/dataset_example/ml-100k/ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
PACKAGED = ("ml-100k.inter", "ml-100k.item")
OFFICIAL = ("u.data", "u.item")
OPTIONAL = ("u.genre",)
RATINGS = 100_000
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")


class MovieLens100K(Source):
    name = "ml-100k"
    title = "films, with genres"
    home = "https://grouplens.org/datasets/movielens/100k/"
    size = "100,000 ratings, 943 users, 1,682 films; 2 MB"
    scale = Scale(1, 5, 1)
    licence = "GroupLens: for research, naming the source; no redistribution; no commercial use without permission"
    how_to_get = f"`reczero data fetch ml-100k`; or download {URL} and add `--archive ml-100k.zip`"

    def fetch(self, cache: Path, archive: str | None = None) -> Path:
        folder = cache / "data" / self.name
        if archive is not None:
            if re.match(r"https?://", archive):
                return self._download(archive, folder, md5=MD5 if archive == URL else None)
            return self._store(Path(archive), folder)
        if _is_whole(folder):
            return folder
        try:
            packaged_file(PACKAGE, VERSION, MEMBERS, folder)
        except UserError as packaged:
            try:
                return self._download(URL, folder, md5=MD5)
            except UserError as official:
                raise UserError(
                    f"could not get {self.name}: from the package: {packaged} From the publisher: {official} "
                    f"Or download {URL} elsewhere and run `reczero data fetch {self.name} --archive ml-100k.zip`."
                ) from official
        return folder

    def _download(self, url: str, folder: Path, md5: str | None) -> Path:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "ml-100k.zip"
            download(url, path, None)
            if md5 is not None and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != md5:
                raise UserError(f"{url}: not the published file (its MD5 differs); try again.")
            return self._store(path, folder)

    def _store(self, path: Path, folder: Path) -> Path:
        """Copy the members of an archive or folder into the cache, once they have proved readable."""
        self.read(path)
        files = _load(path)
        with atomic_dir(folder) as temporary:
            for name, content in files.items():
                (temporary / name).write_bytes(content)
        return folder

    def read(self, path: Path) -> Raw:
        files = _load(path)
        official = OFFICIAL[0] in files
        interactions = _official_ratings(files) if official else _packaged_ratings(files)
        items = _official_items(files) if official else _packaged_items(files)
        if interactions.height != RATINGS:
            raise UserError(
                f"{path}: holds {interactions.height:,} ratings, and MovieLens-100K has {RATINGS:,}: the copy is "
                "incomplete or of other data; get the archive again."
            )
        inputs = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
        return Raw(interactions, items, self.scale, inputs)


def _is_whole(folder: Path) -> bool:
    """Whether the cache holds either layout; the packaged files must still be the ones we know."""
    if all((folder / name).is_file() for name in OFFICIAL):
        return True
    paths = {folder / Path(member).name: expected for member, expected in MEMBERS.items()}
    return all(path.is_file() and file_sha256(path) == expected for path, expected in paths.items())


def _load(path: Path) -> dict[str, bytes]:
    """The files of one layout, by bare name, out of a zip archive or a folder (or the folder `ml-100k` in it)."""
    wanted = {*PACKAGED, *OFFICIAL, *OPTIONAL}
    try:
        if path.is_dir():
            folder = path / "ml-100k" if (path / "ml-100k").is_dir() else path
            files = {name: (folder / name).read_bytes() for name in wanted if (folder / name).is_file()}
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = {name: Path(name).name for name in archive.namelist() if not name.endswith("/")}
                files = {bare: archive.read(name) for name, bare in members.items() if bare in wanted}
        elif not path.exists():
            raise UserError(f"{path}: no such file or folder; give ml-100k.zip or the folder it unpacks to.")
        else:
            raise UserError(f"{path}: not a zip archive, or cut short; give ml-100k.zip or the folder it unpacks to.")
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path}: cannot be read ({error}); get the file again.") from error
    for layout in (OFFICIAL, PACKAGED):
        if all(name in files for name in layout):
            return {name: files[name] for name in (*layout, *(OPTIONAL if layout is OFFICIAL else ())) if name in files}
    raise UserError(
        f"{path}: not MovieLens-100K; expected {' and '.join(OFFICIAL)} (the publisher's archive) "
        f"or {' and '.join(PACKAGED)}."
    )


def _fields(files: dict[str, bytes], name: str, separator: str, count: int, encoding: str) -> list[list[str]]:
    """The lines of a file, split; every one must have `count` fields. Blank lines at the end are allowed."""
    try:
        lines = files[name].decode(encoding).rstrip("\r\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not {encoding} text ({error.reason} at byte {error.start}).") from error
    rows = [line.rstrip("\r").split(separator) for line in lines]
    for number, row in enumerate(rows, 1):
        if len(row) != count:
            raise UserError(
                f"{name}, line {number}: {len(row)} fields where {count} are expected; "
                "the file is cut short or of another format: get it again."
            )
    return rows


def _ratings(rows: list[list[str]], name: str, first_line: int) -> pl.DataFrame:
    """user, item, rating, time as text -> typed columns; the first line that does not fit is named."""
    text = pl.DataFrame(rows, schema=dict.fromkeys(RATING_COLUMNS, pl.String), orient="row")
    typed = text.with_columns(
        pl.col("rating").cast(pl.Float64, strict=False),
        pl.col("timestamp").cast(pl.Float64, strict=False).cast(pl.Int64, strict=False),
    )
    bad = typed.select(
        pl.any_horizontal(pl.col("rating", "timestamp").is_null(), pl.col("user_id", "item_id") == "").arg_true()
    ).to_series()
    if len(bad):
        raise UserError(f"{name}, line {bad[0] + first_line}: not user, item, rating and time: {rows[bad[0]]}.")
    return typed


def _official_ratings(files: dict[str, bytes]) -> pl.DataFrame:
    return _ratings(_fields(files, "u.data", "\t", 4, "utf-8"), "u.data", 1)


def _packaged_ratings(files: dict[str, bytes]) -> pl.DataFrame:
    header, *rows = _fields(files, "ml-100k.inter", "\t", 4, "utf-8")
    if [name.split(":")[0] for name in header] != list(RATING_COLUMNS):
        raise UserError(f"ml-100k.inter, line 1: columns {', '.join(header)}; expected {', '.join(RATING_COLUMNS)}.")
    return _ratings(rows, "ml-100k.inter", 2)


def _items(rows: list[tuple[str, str, list[str]]]) -> pl.DataFrame:
    schema: dict[str, pl.DataType] = {
        "item_id": pl.String(),
        "title": pl.String(),
        "categories": pl.List(pl.String()),
    }
    # "unknown" is the publisher's word for no genre.
    return pl.DataFrame(
        [(item, title, [genre for genre in genres if genre != "unknown"]) for item, title, genres in rows],
        schema=schema,
        orient="row",
    )


def _official_items(files: dict[str, bytes]) -> pl.DataFrame:
    """item | title (year) | release date | video date | link | one flag for each genre."""
    genres: tuple[str, ...] = GENRES
    if "u.genre" in files:
        lines = files["u.genre"].decode("latin-1").splitlines()
        genres = tuple(line.split("|")[0] for line in lines if line.strip())
    rows = _fields(files, "u.item", "|", 5 + len(genres), "latin-1")
    return _items(
        [(row[0], row[1].strip(), [g for g, flag in zip(genres, row[5:], strict=True) if flag == "1"]) for row in rows]
    )


def _packaged_items(files: dict[str, bytes]) -> pl.DataFrame:
    """The title lacks its year, which stands in the next column: joined again, as the publisher writes it."""
    _, *rows = _fields(files, "ml-100k.item", "\t", 4, "utf-8")
    items = []
    for item, title, year, genres in rows:
        # One film is unknown to the publisher too; the copy misspells it, in both columns.
        whole = "unknown" if title == "unkonwn" else f"{title} ({year})" if year else title
        items.append((item, whole, genres.split()))
    return _items(items)
