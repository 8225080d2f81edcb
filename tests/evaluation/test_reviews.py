"""The review-aware baseline, where its libraries are (`pip install 'reczero[reviews]'`: large, and not in `all`)."""

import polars as pl
import pytest
from predictor_contract import PredictorContract

from reczero.errors import UserError
from reczero.evaluation.baselines import baseline
from reczero.reasoning.scale import Scale

pytest.importorskip("cornac", reason="needs reczero[reviews]")
pytest.importorskip("tensorflow", reason="needs reczero[reviews]")

SCALE = Scale(1, 5, 1)
WORDS = {1.0: "dull slow boring weak", 3.0: "fine average decent okay", 5.0: "superb lovely moving great"}
TRAIN = pl.DataFrame(
    [
        (f"u{u}", f"i{i}", rating, WORDS[rating] if u else "")
        for u in range(6)
        for i in range(6)
        if (rating := (1.0, 3.0, 5.0)[(u + i) % 3]) and (u * i) % 4 != 3
    ],
    schema=["user_id", "item_id", "rating", "review"],
    orient="row",
)


class TestNARRE(PredictorContract):
    rows = pl.DataFrame({"user_id": ["u1", "new", "u1", "new"], "item_id": ["i2", "i2", "new", "new"]})
    scale = SCALE

    @staticmethod
    def make():
        return baseline("narre")(max_iter=1, embedding_size=8, n_filters=4).fit(TRAIN, SCALE)

    def test_a_stranger_is_answered_by_the_mean(self):
        assert self.predict()[3] == pytest.approx(TRAIN["rating"].mean())


def test_without_reviews_it_is_left_out():
    with pytest.raises(UserError, match="has no reviews"):
        baseline("narre")(max_iter=1).fit(TRAIN.with_columns(review=pl.lit(None, pl.String)), SCALE)
