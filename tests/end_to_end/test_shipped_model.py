"""The model that lies in the package: whole, described, and sensible right after installation."""

import json

import pytest
from safetensors import safe_open

from reczero.models import PACKAGED, SHIPPED
from reczero.rollout.opening import find
from reczero.serving import Predictor

NAME = "smollm2-135m-recone"


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_small_described_and_names_no_machine(name):
    folder = SHIPPED[name]
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "reczero.json",
    ]  # fmt: skip
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] in PACKAGED
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        assert all("lora_" in key for key in weights.keys())  # noqa: SIM118
    card = (folder / "README.md").read_text("utf-8")
    for needed in ("base_model:", "license:", "MovieLens", "Limits", "docs/results.md"):
        assert needed in card
    found = find(name)
    assert found.rollout.guided and found.scale is not None and found.usual is not None


@pytest.mark.slow
def test_it_answers_sensibly_without_a_data_set():
    predictor = Predictor.from_pretrained(NAME)
    drama, horror = (
        {"title": "A", "categories": [c], "average": 3.5, "count": 80, "rating": r}
        for c, r in (("Drama", 5), ("Horror", 1))
    )
    history = [drama, horror] * 4
    film = {"title": "X", "average": 3.5, "count": 80}
    asked = [
        {"history": history, "item": film | {"categories": ["Drama"]}},
        {"history": history, "item": film | {"categories": ["Horror"]}},
        {"history": [], "item": film | {"average": 4.6}},
        {"history": [], "item": film | {"average": 1.6}},
        {"history": [{"title": "Alien (1979)", "rating": 5}], "item": {"title": "Aliens (1986)"}},
    ]
    liked, disliked, good, bad, plain = predictor.predict_many(asked)
    assert liked.expected > disliked.expected + 0.5 and good.expected > bad.expected + 1
    assert good.rating >= 4 and bad.rating <= 2
    for one in (liked, disliked, good, bad, plain):
        assert one.parsed and 1 <= one.expected <= 5 and abs(sum(one.distribution) - 1) < 1e-6
        assert all(one.reasoning[section] for section in ("analyze_user", "analyze_item", "match"))
    assert "3.50" in liked.reasoning["analyze_item"]  # a number of the prompt, copied


@pytest.mark.slow
def test_it_rates_a_data_sets_rows_better_than_the_averages(tmp_path):
    """A few validation rows: that weights and prompt belong together, not how good it is."""
    import numpy as np

    from reczero.data import open_data
    from reczero.rollout.language_model import LanguageModel

    data = open_data("ml-100k")
    rows = data.examples("validation", where=None, limit=48)
    table = LanguageModel.open(NAME, data).table(rows)
    truth = rows["rating"].to_numpy()
    assert table["parsed"].all()
    assert np.abs(table["prediction"].to_numpy() - truth).mean() < np.abs(4 - truth).mean()
