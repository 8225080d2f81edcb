"""A tiny guided model, and predictors of it."""

import shutil
from pathlib import Path

import pytest

from reczero.data import Dataset
from reczero.recipes import RolloutRecipe
from reczero.rollout.opening import write_about
from reczero.serving import Predictor

GUIDED = {"guided": True, "template": {"instructions": "brief", "section_tokens": 6}}


@pytest.fixture(scope="session")
def guided_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random model, which writes the form because its reczero.json says that it is guided."""
    folder = tmp_path_factory.mktemp("guided") / "tiny"
    shutil.copytree(tiny_model_dir, folder)
    write_about(folder, RolloutRecipe.model_validate(GUIDED), None)
    return folder


@pytest.fixture(scope="session")
def predictor(guided_dir: Path, table: Path) -> Predictor:
    return Predictor.from_pretrained(guided_dir, table)


@pytest.fixture(scope="session")
def data(table: Path) -> Dataset:
    return Dataset.open(table)
