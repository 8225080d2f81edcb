"""Data sets that we know by name: how large they are, whose they are, and how to get them.

Sizes are the publishers' own. What has a stable public address is fetched; for the others we say what to download and
where to put it.
"""

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reczero.errors import UserError
from reczero.fetch import download, packaged_file
from reczero.files import atomic_dir, atomic_file, sha256

from ..raw import RawFile
from .base import Given
from .movielens import locate

_GROUPLENS = "GroupLens: for research, naming the source; no redistribution; no commercial use without permission"
_MCAULEY = "for research; the publisher names no licence; cite Ni, Li, McAuley (EMNLP 2019)"
_AMAZON = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"


class Part(NamedTuple):
    """A file of a data set, its public address if it has one, and its MD5 where the publisher states it."""

    file: str
    url: str | None = None
    md5: str | None = None


class Package(NamedTuple):
    """A copy in a Python package, which a machine with a package index but no web can get."""

    name: str
    version: str
    members: dict[str, str]  # path in the wheel -> SHA-256


@dataclass(frozen=True)
class Published:
    name: str
    source: str
    title: str
    home: str
    size: str
    scale: str
    licence: str
    reviews: Part
    items: Part | None = None
    rows: int | None = None  # ratings in it, where it never changes
    package: Package | None = None

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.reviews, self.items) if part]

    @property
    def how_to_get(self) -> str:
        if all(part.url for part in self.parts):
            return f"`reczero data fetch {self.name}` ({', '.join(str(part.url) for part in self.parts)})"
        return f"by hand: {self.home}, then `reczero data fetch {self.name}` says where to put it"

    def there(self, cache: Path) -> Given | None:
        """The files in the cache, if they are all there."""
        folder = cache / "data" / self.name
        paths = [folder / part.file for part in self.parts]
        if all(path.is_file() for path in paths):
            return self._given(folder)
        if self.source == "movielens" and folder.is_dir():
            try:
                locate(folder)
            except UserError:
                return None
            return Given(folder)
        return None

    def fetch(self, cache: Path, archive: str | None = None) -> Given:
        """The files, brought to the cache unless they are there. Raises UserError with what to do.

        archive: a path or URL of the publisher's own file (of the reviews, where there are two), instead.
        """
        folder = cache / "data" / self.name
        if archive is not None:
            return self._take(archive, folder)
        if (given := self.there(cache)) and self._is_ours(folder):
            return given
        if self.package:
            try:
                return Given(packaged_file(self.package.name, self.package.version, self.package.members, folder))
            except UserError as packaged:
                return self._fetch_parts(folder, f"from the package: {packaged} From the publisher: ")
        return self._fetch_parts(folder)

    def _is_ours(self, folder: Path) -> bool:
        """Files out of the package must still be the ones we know."""
        members = self.package.members if self.package else {}
        paths = {folder / Path(member).name: digest for member, digest in members.items()}
        return not any(path.is_file() for path in paths) or all(
            path.is_file() and sha256(path) == digest for path, digest in paths.items()
        )

    def _fetch_parts(self, folder: Path, tried: str = "") -> Given:
        if not all(part.url for part in self.parts):
            raise UserError(self._by_hand(folder))
        for part in self.parts:
            if (folder / part.file).is_file():
                continue
            try:
                with atomic_file(folder / part.file) as path:
                    self._download(str(part.url), path, part.md5)
            except UserError as error:
                raise UserError(
                    f"could not get {self.name}: {tried}{error} Or download {part.url} elsewhere and put it at "
                    f"{folder / part.file}."
                ) from error
        return self._given(folder)

    def _given(self, folder: Path) -> Given:
        return Given(folder / self.reviews.file, folder / self.items.file if self.items else None)

    def _by_hand(self, folder: Path) -> str:
        files = "\n".join(f"  {folder / part.file}" for part in self.parts)
        return (
            f"{self.name}: has no public address; get it by hand.\n{self.title}: {self.home}\n"
            f"put it there as\n{files}\n"
            f"or name the files: reczero data prepare --source {self.source} --reviews FILE --items FILE --out DIR"
        )

    def _download(self, url: str, path: Path, md5: str | None) -> None:
        download(url, path, None)
        if md5 is None:
            return
        with path.open("rb") as file:
            if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() != md5:
                raise UserError(f"{url}: not the published file (its MD5 differs); try again.")

    def _take(self, archive: str, folder: Path) -> Given:
        """Put somebody's copy into the cache, once it has proved whole."""
        if archive.startswith(("http://", "https://")):
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / self.reviews.file
                self._download(archive, path, self.reviews.md5 if archive == self.reviews.url else None)
                return self._take(str(path), folder)
        path = Path(archive)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; give {self.reviews.file}.")
        self.check(path)
        if self.source != "movielens":
            with atomic_file(folder / self.reviews.file) as target:
                shutil.copy(path, target)
            return self._fetch_parts(folder)
        with atomic_dir(folder) as new:  # files of another layout must not stay beside it
            if path.is_dir():
                edition, ratings, _ = locate(path)
                beside = (ratings.with_name(name) for name in (edition.ratings, edition.films, "u.genre"))
                for file in filter(Path.is_file, beside):
                    shutil.copy(file, new / file.name)
            else:
                shutil.copy(path, new / self.reviews.file)
        return Given(folder) if path.is_dir() else self._given(folder)

    def check(self, path: Path) -> None:
        """UserError where a copy has other than the known number of ratings."""
        if self.source == "movielens":
            edition, ratings, _ = locate(path)
            file = RawFile(ratings, member=(edition.ratings,))
            header = edition.layout.header
        else:
            file, header = RawFile(path), False
        if self.rows is None:
            file.kind()
            return
        found = sum(1 for _ in file.lines()) - header
        if found != self.rows:
            raise UserError(
                f"{path}: holds {found:,} ratings, and {self.name} has {self.rows:,}: the copy is incomplete or of "
                "other data; get it again."
            )


def _movielens(
    size: str, title: str, count: str, rows: int | None, md5: str | None, scale: str, package: Package | None = None
) -> Published:
    name = f"ml-{size}"
    home = f"https://grouplens.org/datasets/movielens/{size if size[0].isdigit() else 'latest'}/"
    url = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    part = Part(f"{name}.zip", url, md5)
    return Published(name, "movielens", title, home, count, scale, _GROUPLENS, part, None, rows, package)


_COPY = "recbole/dataset_example/ml-100k/ml-100k"
_RECBOLE = Package(
    "recbole",
    "1.2.1",
    {
        f"{_COPY}.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        f"{_COPY}.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    },
)

PUBLISHED: dict[str, Published] = {
    published.name: published
    for published in (
        _movielens(
            "100k", "films, with genres", "100,000 ratings, 943 users, 1,682 films; 5 MB", 100_000,
            "0e33842e24a9c977be4e0107933c0723", "1-5 by 1", _RECBOLE,
        ),
        _movielens(
            "1m", "films, with genres", "1,000,209 ratings, 6,040 users; 6 MB", 1_000_209,
            "c4d9eecfca2ab87c1945afe126590906", "1-5 by 1",
        ),
        _movielens(
            "10m", "films, with genres", "10,000,054 ratings, 71,567 users; 63 MB", 10_000_054,
            "ce571fd55effeba0271552578f2648bd", "0.5-5 by 0.5",
        ),
        _movielens(
            "25m", "films, with genres", "25,000,095 ratings, 162,541 users; 250 MB", 25_000_095,
            "6b51fb2759a8657d3bfcbfc42b592ada", "0.5-5 by 0.5",
        ),
        _movielens(
            "32m", "films, with genres", "32,000,204 ratings, 200,948 users; 239 MB", 32_000_204,
            "d472be332d4daa821edc399621853b57", "0.5-5 by 0.5",
        ),
        _movielens(
            "latest-small", "films, with genres", "about 100,000 ratings, 600 users; 1 MB; changes", None, None,
            "0.5-5 by 0.5",
        ),
        Published(
            "amazon-book", "amazon2018", "books, with reviews (Amazon 2018, 5-core)",
            "https://nijianmo.github.io/amazon/", "27,164,983 reviews; many GB", "1-5 by 1", _MCAULEY,
            Part("Books_5.json.gz", f"{_AMAZON}/categoryFilesSmall/Books_5.json.gz"),
            Part("meta_Books.json.gz", f"{_AMAZON}/metaFiles2/meta_Books.json.gz"),
        ),
        Published(
            "amazon-music", "amazon2018", "digital music, with reviews (Amazon 2018, 5-core)",
            "https://nijianmo.github.io/amazon/", "169,781 reviews", "1-5 by 1", _MCAULEY,
            Part("Digital_Music_5.json.gz", f"{_AMAZON}/categoryFilesSmall/Digital_Music_5.json.gz"),
            Part("meta_Digital_Music.json.gz", f"{_AMAZON}/metaFiles2/meta_Digital_Music.json.gz"),
        ),
        Published(
            "yelp", "yelp", "local businesses, with reviews (JSON; unpack the .tar in it)",
            "https://business.yelp.com/data/resources/open-dataset/", "about 7 million reviews", "1-5 by 1",
            "Yelp Dataset Terms of Use: academic use, no redistribution; to be accepted before the download",
            Part("yelp_academic_dataset_review.json"), Part("yelp_academic_dataset_business.json"),
        ),
        Published(
            "imdb", "imdb", "films, with reviews, as JSON lines or CSV (reviewer, film, rating, date, text)",
            "https://ieee-dataport.org/open-access/imdb-movie-reviews-dataset", "depends on the copy", "1-10 by 1",
            "IMDb: personal and non-commercial use", Part("reviews.jsonl"),
        ),
    )
}  # fmt: skip
