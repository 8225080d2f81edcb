"""Anything against anything on held-out rows: `reczero compare DATA`."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from random_data import made

from reczero.cli import main
from reczero.data import Dataset
from reczero.evaluation import metrics
from reczero.evaluation.baselines import AverageRegression
from reczero.evaluation.outside import read_predictions_file
from reczero.evaluation.study import PAIRS

LIGHT = ("--rounds", "200", "--min-user-history", "2", "--min-item-history", "8")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return made(tmp_path_factory.mktemp("study"), rows=400)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "cache"))


def compared(data: Dataset, out: Path, *options: str) -> pl.DataFrame:
    assert main.run(["compare", str(data.path), "--out", str(out), *LIGHT, *options]) == 0
    return pl.read_csv(out / "comparison.csv")


def guided(tiny_model_dir: Path, folder: Path) -> Path:
    """The tiny model in a folder of its own, asked guided and briefly."""
    folder.mkdir()
    for file in tiny_model_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    template = {"instructions": "brief", "history": 1, "opinions": 0, "section_tokens": 3}
    (folder / "reczero.json").write_text(json.dumps({"rollout": {"guided": True, "template": template}}))
    return folder


def row(table: pl.DataFrame, name: str) -> dict:
    return table.row(by_predicate=pl.col("model") == name, named=True)


def test_all_baselines(data, tmp_path, capsys):
    out = tmp_path / "out"
    table = compared(data, out, "--refit", "3")
    said = capsys.readouterr()
    assert "left out: baseline narre" in said.err and "cold starts have their own table" in said.out
    assert list(table.columns[:4]) == ["model", "rows", "mae", "mae_low"] and {"rps", "seconds"} <= set(table.columns)
    names = set(table["model"])
    assert {
        "global-median",
        "additive-rounded",
        "average-regression",
        "biased-mf",
        "svd++",
        "item-knn",
        "user-knn",
    } <= names
    assert {
        "boosting",
        "boosting-rounded",
        "boosting-classes",
        "boosting-classes-median",
        "biased-mf-refitted",
    } <= names
    test = data.examples("test", cold_start=None)
    enough = test.filter(~pl.col("cold_start") & (pl.col("user_count") >= 2) & (pl.col("item_count") >= 8))
    assert set(table["rows"]) == {enough.height} and enough.height < test.height
    cold = pl.read_csv(out / "cold_start.csv")
    assert set(cold["rows"]) == {test.height - enough.height} and set(cold["model"]) == names
    # The figures are those of the predictions that lie there.
    kept = pl.read_parquet(out / "predictions" / "svd++.parquet").join(enough, on="example_id", how="semi")
    assert row(table, "svd++")["mae"] == pytest.approx(
        metrics.mae(kept["rating"].to_numpy(), kept["prediction"].to_numpy()), abs=1e-6
    )
    found = json.loads((out / "comparison.json").read_text())
    assert found["command"] is None and found["data"]["fingerprint"] == data.fingerprint
    assert {s["slice"] for s in found["slices"]} >= {"true rating", "user's earlier ratings", "time", "history shown"}
    for kind in ("true rating", "time", "user's earlier ratings"):
        parts = [s["rows"] for s in found["slices"] if s["slice"] == kind and s["model"] == "additive"]
        assert sum(parts) == enough.height
    assert found["pairs"][0]["model"] == "additive-rounded" and set(found["pairs"][0]) == set(PAIRS)
    assert found["calibration"]["boosting-classes"]["count"]
    assert r"\toprule" in (out / "comparison.tex").read_text() and "svd++ &" in (out / "comparison.tex").read_text()
    assert (out / "report.html").stat().st_size > 10_000


def test_a_second_call_asks_nothing_again_and_says_the_same(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = compared(data, out, "--baseline", "biased-mf", "--baseline", "averages")
    before = {path: path.stat().st_mtime_ns for path in (out / "predictions").glob("*.parquet")}

    def fail(*_):
        raise AssertionError("fitted again")

    from reczero.evaluation.baselines.collaborative import BiasedMF

    with monkeypatch.context() as patched:
        patched.setattr(BiasedMF, "fit", fail)
        second = compared(data, out, "--baseline", "biased-mf", "--baseline", "averages")
    assert second.drop("seconds").equals(first.drop("seconds"))
    assert before == {path: path.stat().st_mtime_ns for path in (out / "predictions").glob("*.parquet")}


def test_validation_rows_to_choose_by_leave_the_test_rows_unread(data, table, tiny_model_dir, tmp_path, monkeypatch):
    asked = []
    examples = Dataset.examples

    def watched(self, split=None, *args, **kwargs):
        asked.append(split)
        return examples(self, split, *args, **kwargs)

    monkeypatch.setattr(Dataset, "examples", watched)
    found = compared(data, tmp_path / "out", "--split", "validation", "--baseline", "all", "--refit", "2")
    assert "test" not in asked and {"affinity-hint-classes-median", "svd++-refitted"} <= set(found["model"])
    rows = examples(data, "validation")
    enough = rows.filter((pl.col("user_count") >= 2) & (pl.col("item_count") >= 8)).height
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["rows"].unique().to_list() == [enough] and result["settings"]["split"] == "validation"
    assert "these are validation rows" in result["warnings"][0]
    # Fitted on training rows alone, the averages' weights too.
    train = examples(data, "train", cold_start=None)
    want = AverageRegression().fit(train, data.scale).predict(rows).prediction
    kept = pl.read_parquet(tmp_path / "out" / "predictions" / "average-regression.parquet")
    given = dict(zip(kept["example_id"], kept["prediction"], strict=True))
    assert [given[name] for name in rows["example_id"]] == pytest.approx(want.tolist())
    assert main.run(["compare", str(data.path), "--split", "validation", "--tune", "--out", str(tmp_path / "x")]) == 2
    # Every decoding of a model is told apart, for here one chooses.
    model, out = guided(tiny_model_dir, tmp_path / "tiny"), tmp_path / "lm"
    options = ["--split", "validation", "--rows", "12", "--model", str(model), *LIGHT[:2]]
    assert main.run(["compare", str(table), *options, "--out", str(out)]) == 0
    ours = set(pl.read_csv(out / "pairs.csv")["model"])
    assert {"tiny", "tiny-expected", "tiny-median"} <= ours and "test" not in asked


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_predictions_from_outside(data, tmp_path, kind, capsys):
    test = data.examples("test", cold_start=None).select("example_id", prediction=pl.lit(3.0))
    file = tmp_path / f"theirs.{kind}"
    half = test.gather_every(2)
    {"csv": half.write_csv, "jsonl": half.write_ndjson, "parquet": half.write_parquet}[kind](file)
    table = compared(data, tmp_path / "out", "--predictions", f"theirs={file}", "--baseline", "global-median")
    mine = row(table, "theirs")
    assert mine["parse_rate"] == pytest.approx(0.5, abs=0.1) and table["model"][0] == "theirs"
    assert "theirs against global-median" in capsys.readouterr().out
    pairs = pl.read_csv(tmp_path / "out" / "pairs.csv")
    assert pairs["model"].to_list() == ["theirs"] and pairs["against"].to_list() == ["global-median"]


def test_one_that_fails_on_half_of_the_rows_is_worse_and_one_that_peeks_is_warned_of(data, tmp_path, capsys):
    test = data.examples("test", cold_start=None).select("example_id", prediction="rating")
    test.write_csv(tmp_path / "peeks.csv")
    good = data.examples("test", cold_start=None).select("example_id", prediction=pl.col("user_avg").fill_null(3.0))
    good.write_csv(tmp_path / "whole.csv")
    good.with_columns(
        prediction=pl.when(pl.int_range(pl.len()) % 2 == 0)
        .then(pl.lit("n/a"))
        .otherwise(pl.col("prediction").cast(pl.String))
    ).write_csv(tmp_path / "half.csv")
    given = [f"--predictions={name}={tmp_path / name}.csv" for name in ("peeks", "whole", "half")]
    table = compared(data, tmp_path / "out", *given, "--baseline", "averages")
    said = capsys.readouterr()
    assert "warning: peeks: may have seen the truth" in said.err and "whole: may" not in said.err
    assert row(table, "peeks")["mae"] == 0
    assert row(table, "half")["parse_rate"] == pytest.approx(0.5, abs=0.1)
    median = json.loads((tmp_path / "out" / "comparison.json").read_text())["fallback"]
    rows = data.examples("test").filter((pl.col("user_count") >= 2) & (pl.col("item_count") >= 8))
    kept = rows.join(
        pl.read_csv(tmp_path / "half.csv", infer_schema=False), on="example_id", how="left", maintain_order="left"
    )
    scored = kept["prediction"].cast(pl.Float64, strict=False).fill_null(median).to_numpy()
    assert row(table, "half")["mae"] == pytest.approx(metrics.mae(kept["rating"].to_numpy(), scored), abs=1e-6)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "may have seen the truth" in report


def test_tuned_settings_are_chosen_on_validation_and_kept(data, tmp_path, capsys):
    from reczero.evaluation import tuning
    from reczero.evaluation.baselines import baseline

    compared(data, tmp_path / "out", "--baseline", "biased-mf", "--tune")
    said = capsys.readouterr().err
    kind = baseline("biased-mf")
    tried = list(tuning.candidates(kind))
    assert said.count("validation MAE") == len(tried)
    chosen = tuning.stored(data)["biased-mf"]
    assert tried[0] == {} and chosen in tried
    train, validation = (data.examples(split, cold_start=None) for split in ("train", "validation"))
    rows = validation.filter(~pl.col("cold_start") & (pl.col("user_count") >= 2) & (pl.col("item_count") >= 8))
    truth, users = rows["rating"].to_numpy(), rows["user_id"].to_numpy()
    given = [kind(**settings).fit(train, data.scale).predict(rows).prediction for settings in tried]
    best = int(np.argmin([metrics.rmse(truth, x) for x in given]))
    clear = metrics.paired_difference(truth, given[best], given[0], users, 3).rmse.high < 0
    assert chosen == (tried[best] if clear else {})
    compared(data, tmp_path / "again", "--baseline", "biased-mf")  # without --tune: what was kept
    settings = json.loads((tmp_path / "again" / "comparison.json").read_text())["baseline_settings"]
    assert settings == ({"biased-mf": chosen} if chosen else {})


def test_refitted_knows_the_past_and_no_more(data, monkeypatch, tmp_path):
    from reczero.evaluation.baselines.collaborative import BiasedMF

    seen = []
    real = BiasedMF.fit

    def fit(self, train, scale):
        seen.append(train)
        return real(self, train, scale)

    asked = []
    predict = BiasedMF.predict
    monkeypatch.setattr(BiasedMF, "fit", fit)
    monkeypatch.setattr(BiasedMF, "predict", lambda self, rows: asked.append(rows) or predict(self, rows))
    compared(data, tmp_path / "out", "--baseline", "biased-mf", "--refit", "4")
    assert len(seen) == len(asked) == 1 + 4
    assert seen[0].height == data.examples("train", None).height + data.examples("validation", None).height
    for known, rows in zip(seen[1:], asked[1:], strict=True):
        assert known["timestamp"].max() < rows["timestamp"].min() and "rating" not in rows.columns
    assert sum(rows.height for rows in asked[1:]) == data.examples("test", None).height


def test_a_quick_look_at_some_rows_leaves_nothing_stale_behind(data, tmp_path):
    few = compared(data, tmp_path / "out", "--baseline", "biased-mf", "--rows", "20")
    every = compared(data, tmp_path / "out", "--baseline", "biased-mf")
    assert few["rows"][0] < 20 < every["rows"][0]
    fresh = compared(data, tmp_path / "fresh", "--baseline", "biased-mf")
    assert every.drop("seconds").equals(fresh.drop("seconds"))
    assert pl.read_parquet(tmp_path / "out" / "predictions" / "biased-mf.parquet").height > 20


def test_a_folder_used_again_with_other_limits_says_what_a_fresh_one_says(table, tiny_model_dir, tmp_path):
    model = guided(tiny_model_dir, tmp_path / "m")
    command = ["compare", str(table), "--model", f"m={model}", "--validation", "10", "--samples", "2", "--probe", "5"]
    command += ["--baseline", "average-regression", "--rounds", "100"]
    more = ["--min-user-history", "22", "--min-item-history", "6"]
    assert main.run([*command, "--out", str(tmp_path / "used")]) == 0
    assert main.run([*command, *more, "--out", str(tmp_path / "used")]) == 0
    assert main.run([*command, *more, "--out", str(tmp_path / "fresh")]) == 0
    used, fresh = (json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("used", "fresh"))
    for key in ("rows", "decoding", "pairs", "slices", "probes", "calibration"):
        assert used[key] == fresh[key], key


def test_probes_are_of_rows_that_the_table_has(table, tiny_model_dir, tmp_path):
    model, out = guided(tiny_model_dir, tmp_path / "m"), tmp_path / "out"
    command = ["compare", str(table), "--model", f"m={model}", "--rows", "9", "--probe", "6", "--validation", "0"]
    assert main.run([*command, "--rounds", "100", "--out", str(out)]) == 0
    asked, probed = (pl.read_parquet(out / "predictions" / f"{name}.parquet") for name in ("m", "m@probes"))
    assert set(probed["example_id"]) <= set(asked["example_id"]) and asked.height <= 9


def test_another_model_or_file_of_the_same_name_is_asked_anew(data, table, tiny_model_dir, tmp_path):
    model = guided(tiny_model_dir, tmp_path / "m")
    command = ["compare", str(table), "--baseline", "global-median", "--validation", "0", "--rounds", "100", "--out"]
    command += [str(tmp_path / "out")]

    def mae(*options: str) -> float:
        assert main.run([*command, *options]) == 0
        return row(pl.read_csv(tmp_path / "out" / "comparison.csv"), "m")["mae"]

    first = mae("--model", str(model))
    Dataset.open(table).examples("test", None).select("example_id", prediction="rating").write_csv(tmp_path / "m.csv")
    assert mae("--predictions", f"m={tmp_path / 'm.csv'}") == 0
    assert mae("--model", str(model)) == first
    path = tmp_path / "out" / "predictions" / "m.parquet"
    before = path.stat().st_mtime_ns
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    mae("--model", str(model))
    assert path.stat().st_mtime_ns != before
    # Damaged tables and keys are asked again.
    (tmp_path / "out" / "predictions" / "global-median.parquet").write_bytes(b"PAR1")
    pl.read_parquet(path).head(3).write_parquet(path)
    again = mae("--model", str(model))
    (tmp_path / "out" / "predictions" / "keys.json").write_text("[]")
    assert mae("--model", str(model)) == again


def test_what_predict_wrote_in_parts_counts_as_the_model_itself(table, tiny_model_dir, tmp_path, capsys):
    model = guided(tiny_model_dir, tmp_path / "m")
    parts = [tmp_path / f"{number}.parquet" for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        assert main.run(["predict", str(model), str(table), "--part", f"{number}/2", "-o", str(part)]) == 0
    joined = tmp_path / "all.parquet"
    assert main.run(["join", *map(str, parts), "-o", str(joined)]) == 0
    command = ["compare", str(table), "--baseline", "global-median", "--rounds", "100", "--validation", "0", "--out"]
    assert main.run([*command, str(tmp_path / "asked"), "--model", f"m={model}"]) == 0
    assert main.run([*command, str(tmp_path / "given"), "--predictions", f"m={joined}"]) == 0
    asked, given = (
        pl.read_csv(tmp_path / name / "comparison.csv").drop("tokens", "seconds").sort("model")
        for name in ("asked", "given")
    )
    assert {"m", "m-expected", "m-median"} <= set(asked["model"])
    assert_frame_equal(asked, given)
    # No validation rows can choose among its decodings, so that each is told apart.
    assert set(pl.read_csv(tmp_path / "given" / "pairs.csv")["model"]) == {"m", "m-expected", "m-median"}
    found = [json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("asked", "given")]
    assert found[0]["calibration"] == found[1]["calibration"] and "m" in found[0]["calibration"]
    # The report shows what it wrote.
    kept = [pl.read_parquet(tmp_path / name / "predictions" / "m.parquet") for name in ("asked", "given")]
    for column in ("text", "reasoning"):
        assert kept[0][column].to_list() == kept[1][column].to_list()
    # A row of which nothing is told has its number alone.
    some = pl.when(pl.int_range(pl.len()) % 2 == 0).then("distribution")
    pl.read_parquet(joined).with_columns(distribution=some).write_parquet(tmp_path / "half.parquet")
    assert main.run([*command, str(tmp_path / "half"), "--predictions", f"m={tmp_path / 'half.parquet'}"]) == 0
    half = pl.read_csv(tmp_path / "half" / "comparison.csv")
    assert all(row(half, "m")[figure] == row(given, "m")[figure] for figure in ("mae", "rmse", "parse_rate"))
    assert 0.3 < row(half, "m-expected")["parse_rate"] < 0.7
    # One that is none of this scale's is refused, and names the row.
    wrong = pl.read_parquet(joined).with_columns(distribution=pl.col("distribution").list.head(3))
    wrong.write_parquet(tmp_path / "wrong.parquet")
    capsys.readouterr()
    assert main.run([*command, str(tmp_path / "x"), "--predictions", f"m={tmp_path / 'wrong.parquet'}"]) == 2
    assert "is not 5 probabilities" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["m-expected", "m-median", "m-mean-of-8", "m@run2", "m/x"])
def test_names_that_would_stand_for_two_things(data, table, tiny_model_dir, tmp_path, name, capsys):
    model = guided(tiny_model_dir, tmp_path / "m")
    (tmp_path / "p.csv").write_text("example_id,prediction\n")
    command = ["compare", str(table), "--model", str(model), "--predictions", f"{name}={tmp_path / 'p.csv'}"]
    assert main.run([*command, "--out", str(tmp_path / "out")]) == 2
    assert name in capsys.readouterr().err
    assert main.run(["compare", str(table), "--model", f"m={model},{model}", "--out", str(tmp_path / "out")]) == 2
    assert "stands there twice" in capsys.readouterr().err


def test_absurd_numbers_are_failures_and_told(data, tmp_path, capsys):
    test = data.examples("test", cold_start=None).select(
        "example_id", prediction=pl.lit(3.0), tokens=pl.lit(float("inf"))
    )
    spoilt = pl.when(pl.int_range(pl.len()) % 3 > 0).then(pl.lit(1e200)).otherwise("prediction")
    test.with_columns(prediction=spoilt).write_csv(tmp_path / "p.csv")
    table = compared(data, tmp_path / "out", "--predictions", f"p={tmp_path / 'p.csv'}", "--baseline", "averages")
    said = capsys.readouterr().err
    assert (
        "far off the scale, such as 1e+200; they count as failures" in said
        and "of the test rows have an answer" in said
    )
    assert row(table, "p")["mae"] < 2
    json.loads((tmp_path / "out" / "comparison.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_anonymised_in_a_used_folder_leaves_no_name_behind(data, tmp_path):
    rows = data.examples("test", cold_start=None).select("example_id", prediction="user_avg")
    rows.write_csv(tmp_path / "p.csv")
    compared(data, tmp_path / "out", "--predictions", f"p={tmp_path / 'p.csv'}", "--baseline", "averages")
    compared(data, tmp_path / "out", "--baseline", "averages", "--anonymise")
    for path in (tmp_path / "out").rglob("*.parquet"):
        assert pl.read_parquet(path)["example_id"].str.starts_with("user-").all(), path


def test_what_is_no_fault_of_a_baseline_ends_the_comparison(data, tmp_path, capsys):
    (tmp_path / "out" / "predictions" / "additive.parquet").mkdir(parents=True)
    (tmp_path / "out" / "comparison.json").write_text("{}")
    assert main.run(["compare", str(data.path), "--out", str(tmp_path / "out"), *LIGHT, "--baseline", "averages"]) == 2
    assert "additive.parquet" in capsys.readouterr().err


def test_a_language_model_with_all_that_can_be_asked_of_it(table, tiny_model_dir, tmp_path, capsys):
    folder = guided(tiny_model_dir, tmp_path / "tiny")
    out = tmp_path / "out"
    command = ["compare", str(table), "--model", str(folder), "--out", str(out), "--rounds", "100", "--samples", "3"]
    command += ["--probe", "6", "--validation", "10", "--anonymise"]
    assert main.run(command) == 0
    said = capsys.readouterr()
    found = json.loads((out / "comparison.json").read_text())
    ways = {"tiny", "tiny-expected", "tiny-median", "tiny-mean-of-3", "tiny-median-of-3"}
    assert ways <= {line["model"] for line in found["comparison"]}
    assert set(found["decoding"]["tiny"]["validation"]) == ways and found["decoding"]["tiny"]["rows"] == 10
    assert "is the decoding for MAE" in said.out and "how far its rating moves under probes" in said.out
    probes = {line["probe"]: line for line in found["probes"]["tiny"]}
    assert probes["unaltered"]["moved"] == 0 == probes["own-reasoning"]["moved"] and probes["other-user"]["rows"] == 6
    own = row(pl.read_csv(out / "comparison.csv"), "tiny")
    assert own["tokens"] > 10 and own["rps"] > 0
    # No user id anywhere.
    for path in [out / "test_examples.parquet", *(out / "predictions").glob("*.parquet")]:
        ids = pl.read_parquet(path)["example_id"]
        assert ids.str.starts_with("user-").all(), path
    assert '"u1' not in (out / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (out / "predictions").glob("*.parquet")}
    assert main.run(command) == 0  # asks nothing again
    assert before == {path: path.stat().st_mtime_ns for path in (out / "predictions").glob("*.parquet")}
    assert json.loads((out / "comparison.json").read_text())["comparison"] == found["comparison"]


def test_runs_of_several_seeds_are_pooled(table, tiny_model_dir, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    names = []
    for seed in range(2):
        names.append(guided(tiny_model_dir, tmp_path / f"seed{seed}"))
        weights = load_file(names[-1] / "model.safetensors")
        torch.manual_seed(seed)
        for name, weight in weights.items():
            weights[name] = weight + 0.3 * seed * torch.randn_like(weight)
        save_file(weights, names[-1] / "model.safetensors", metadata={"format": "pt"})
    command = ["compare", str(table), "--rounds", "100", "--validation", "10", "--baseline", "global-median", "--out"]
    both = f"both={names[0]},{names[1]}"
    assert main.run([*command, str(tmp_path / "out"), "--model", both, *(f"--model={name}" for name in names)]) == 0
    rows = pl.read_csv(tmp_path / "out" / "comparison.csv")
    for way in ("", "-expected", "-median"):
        one, two, pooled = (row(rows, name + way) for name in ("seed0", "seed1", "both"))
        assert pooled["mae"] == pytest.approx((one["mae"] + two["mae"]) / 2, abs=1e-6)
        assert pooled["rmse"] ** 2 == pytest.approx((one["rmse"] ** 2 + two["rmse"] ** 2) / 2, abs=1e-5)
        assert pooled["rps"] == pytest.approx((one["rps"] + two["rps"]) / 2, abs=1e-6)
        assert pooled["runs"] == 2
    one, two = (row(rows, f"seed{seed}-expected") for seed in (0, 1))
    assert row(rows, "both-expected")["run_sd"] == pytest.approx(abs(one["mae"] - two["mae"]) / 2**0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--baseline", "nothing"], "no baseline 'nothing'"),
        (["--predictions", "file.csv"], "is written NAME=FILE"),
        (["--predictions", "a=missing.csv"], "no such file"),
        (["--predictions", "svd++=missing.csv"], "no such file"),
        (["--min-user-history", "9999"], "lower --min-user-history"),
        (["--model", "no-such-run"], "no-such-run"),
    ],
)
def test_mistakes_are_told(data, tmp_path, options, says, capsys):
    assert main.run(["compare", str(data.path), "--out", str(tmp_path / "out"), *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "example_id,rating\nx,1\n", "no column 'prediction'"),
        ("a.csv", "", "cannot be read"),
        ("a.jsonl", "{", "row 1 is not JSON"),
        ("a.jsonl", "[1]", "row 1 is no JSON object"),
        ("a.csv", "example_id,prediction\n".encode("utf-16"), "is not UTF-8"),
        ("a.parquet", "PAR1", "cannot be read"),
        ("a.txt", "x", "ends on none of"),
        ("a.csv", "example_id,prediction\nnobody:nothing,1\n", "not one example_id"),
    ],
)
def test_files_that_are_no_predictions(data, tmp_path, name, content, says, capsys):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    command = ["compare", str(data.path), "--out", str(tmp_path / "out"), "--predictions", f"x={tmp_path / name}"]
    assert main.run(command) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "example_id;prediction\na:b;3.5\na:c;\n"),
        ("a.jsonl", '{"example_id": "a:b", "prediction": 3.5}\n\n{"example_id": "a:c", "prediction": NaN}\n'),
        ("a.json", '[{"example_id": "a:b", "prediction": "3.5"}, {"example_id": "a:c", "prediction": null}]'),
    ],
)
def test_predictions_as_other_tools_write_them(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_predictions_file(tmp_path / name).rows() == [("a:b", 3.5), ("a:c", None)]


def test_too_few_draws_for_the_pairs_are_told(data, tmp_path, capsys):
    assert (
        main.run(
            [
                "compare",
                str(data.path),
                "--baseline",
                "averages",
                "--rounds",
                "100",
                "--refit",
                "0",
                "--out",
                str(tmp_path / "o"),
            ]
        )
        == 0
    )
    assert "draws are too few" in capsys.readouterr().err


def test_another_folder_is_never_written_into(data, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    assert main.run(["compare", str(data.path), "--out", str(tmp_path)]) == 2
    assert "is not empty and no comparison" in capsys.readouterr().err
    assert main.run(["compare", str(data.path), "--baseline", "averages", "--out", "/proc/nothing"]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert main.run(["compare", str(tmp_path / "nothing")]) == 2
    assert main.run(["compare", "mI-100k"]) == 2
    assert "did you mean ml-100k" in capsys.readouterr().err
