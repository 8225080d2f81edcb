"""The adapters that come with the package: small, described, and sensible right after installation."""

import numpy as np
import pytest
from safetensors import safe_open

from reczero.files import read_json
from reczero.models import PACKAGED, SHIPPED
from reczero.recipes import RolloutRecipe
from reczero.serving import Predictor

NAME = "smollm2-135m-recone"


def test_what_is_shipped_is_there():
    assert NAME in SHIPPED


@pytest.mark.parametrize("folder", SHIPPED.values(), ids=SHIPPED)
def test_a_shipped_adapter_is_small_and_says_what_it_is(folder):
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "reczero.json", "README.md"}
    assert sum(files.values()) <= 20e6
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] in PACKAGED
    with safe_open(folder / "adapter_model.safetensors", "np") as weights:
        assert len(list(weights.keys())) > 0
    about = read_json(folder / "reczero.json")
    assert RolloutRecipe.model_validate(about["rollout"]).guided and 1 < about["usual"] < 5
    card = (folder / "README.md").read_text(encoding="utf-8")
    for told in ("## Data", "## Licence", "## Limits", "Apache-2.0", "MovieLens"):
        assert told in card


@pytest.mark.slow
def test_a_shipped_model_rates_what_is_liked_higher_than_what_is_not():
    predictor = Predictor.from_pretrained(NAME)
    generous, strict = (
        [{"title": f"Film {i}", "rating": rating + i % 2, "average": 3.5, "count": 100} for i in range(10)]
        for rating in (4, 1)
    )
    loved, hated = {"title": "A", "average": 4.4, "count": 200}, {"title": "B", "average": 2.0, "count": 200}
    requests = [{"history": history, "item": item} for history in (generous, strict) for item in (loved, hated)]
    answers = predictor.predict_many(requests)
    assert all(answer.rating in {1, 2, 3, 4, 5} and answer.reasoning["match"] for answer in answers)
    assert all(np.isclose(sum(answer.distribution), 1) for answer in answers)
    best, low, middle, worst = (answer.expected for answer in answers)
    assert best > max(low, middle) and min(low, middle) > worst and best - worst > 1
    assert answers[0].rating >= 4 and answers[3].rating <= 2
    assert answers == predictor.predict_many(requests)
    nothing = predictor.predict(history=[], item={"title": "Nobody knows it"})  # all that is asked may be unknown
    assert nothing.rating in {2, 3, 4, 5}
