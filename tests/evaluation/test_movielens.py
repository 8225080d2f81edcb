"""The known figures of MovieLens-100K, split by time, through the command that users type."""

import json

import polars as pl
import pytest

from reczero.cli import main
from reczero.data import prepare_source
from reczero.files import cache_dir

KNOWN = {  # MAE, RMSE, MAE rounded, and how near ours must come: found by independent code on the same 9,368 rows
    "global-median": (0.907, 1.207, None, 0.002),
    "global-mean": (0.970, 1.140, 0.907, 0.002),
    "user-average": (0.885, 1.103, 0.866, 0.002),
    "item-average": (0.839, 1.033, 0.807, 0.002),
    "additive": (0.805, 1.019, 0.769, 0.002),
    "average-regression": (0.809, 1.003, 0.774, 0.002),
    "svd++": (0.817, 1.016, 0.778, 0.01),
    "item-knn": (0.813, 1.016, 0.783, 0.01),
    "boosting": (0.768, 0.961, 0.735, 0.01),
}


@pytest.mark.slow
def test_every_baseline_comes_to_what_is_known(tmp_path, monkeypatch):
    data = prepare_source("ml-100k", cache_dir() / "prepared" / "ml-100k-tests")
    monkeypatch.setattr("reczero.evaluation.tuning.cache_dir", lambda: tmp_path)  # the settings that are shipped
    command = ["compare", str(data.path), "--baseline", "all", "--out", str(tmp_path / "out"), "--rounds", "200"]
    command += ["--refit", "0"]  # they take minutes, and are tested on little data
    assert main.run(command) == 0
    table = {row["model"]: row for row in pl.read_csv(tmp_path / "out" / "comparison.csv").iter_rows(named=True)}
    assert {row["rows"] for row in table.values()} == {9_368}
    for name, (mae, rmse, rounded, near) in KNOWN.items():
        assert table[name]["mae"] == pytest.approx(mae, abs=near), name
        assert table[name]["rmse"] == pytest.approx(rmse, abs=near), name
        if rounded:
            assert table[f"{name}-rounded"]["mae"] == pytest.approx(rounded, abs=near), name
    assert table["boosting-classes-median"]["mae"] == pytest.approx(0.720, abs=0.01)
    assert table["boosting-classes-median"]["rmse"] == pytest.approx(1.014, abs=0.01)
    assert table["biased-mf"]["mae"] < 0.826 and table["biased-mf"]["rmse"] < 1.027  # known of one that saw less
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert set(found["baseline_settings"]) == {"boosting", "boosting-classes"}
