"""Predictions that were made elsewhere: a file with `example_id` and `prediction`, in one of three formats; or the
folder of answers that verl left beside the tables of `reczero launch`.
"""

import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl

from reczero.errors import UserError
from reczero.files import read_json, separator_of
from reczero.reasoning import Scale, Template, parse
from reczero.recipes import RolloutRecipe

_ASKS = "it takes a CSV, JSON lines or Parquet with the columns example_id and prediction"


def read_predictions_file(path: Path, fingerprint: str | None = None) -> pl.DataFrame:
    """example_id (str) and prediction (float, null where a row has no number); and, if it tells them, `tokens`,
    `seconds`, `text` and, of JSON lines and Parquet, `distribution` (a list of floats, null where a row has none) and
    `reasoning` (a struct of texts). A folder is read as verl's `trainer.validation_data_dir`; then every test row that
    the launch asked has a row. fingerprint: of the data set, which a launch must be of.

    Raises UserError. A prediction that is no number is one row's failure, and no reason to refuse the others.
    """
    if path.is_dir():
        return _from_verl(path, fingerprint)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {_ASKS}")
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            with path.open(encoding="utf-8-sig") as file:
                header = file.readline()
            table = pl.read_csv(path, infer_schema=False, separator=separator_of(header))
        elif kind in (".jsonl", ".ndjson", ".json"):
            table = _from_json(path)
        elif kind in (".parquet", ".pq"):
            table = pl.read_parquet(path)
        else:
            raise UserError(f"{path}: the name ends on none of .csv, .jsonl, .parquet; {_ASKS}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {_ASKS}") from error
    if missing := {"example_id", "prediction"} - set(table.columns):
        raise UserError(f"{path}: no column {min(missing)!r}; {_ASKS}")
    text = pl.col(pl.String).str.strip_chars()
    if nested := [name for name in ("example_id", "prediction") if table.schema[name].is_nested()]:
        raise UserError(f"{path}: column {nested[0]!r} is nested; {_ASKS}")
    if table.schema["prediction"].is_temporal():
        raise UserError(f"{path}: column 'prediction' holds times; {_ASKS}")
    kept = [name for name in ("prediction", "tokens", "seconds") if name in table.columns]
    try:
        numbers = table.with_columns(text).select("example_id", pl.col(kept).cast(pl.Float64, strict=False))
        finite = [pl.when(pl.col(name).is_finite()).then(name).alias(name) for name in kept]
        given = numbers.select(pl.col("example_id").cast(pl.String), *finite)
        return given.hstack([table[name].cast(kind) for name, kind in _told(table.schema).items()])
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path}: a column holds neither text nor numbers ({str(error).splitlines()[0]}); {_ASKS}"
        ) from error


def _told(schema: pl.Schema) -> dict[str, pl.DataType]:
    """The further columns of a file that are of a kind that can be used, and as what they are read."""
    found: dict[str, pl.DataType] = {}
    distribution = schema.get("distribution")
    if isinstance(distribution, pl.List | pl.Array) and (
        distribution.inner.is_numeric() or distribution.inner == pl.Null
    ):
        found["distribution"] = pl.List(pl.Float64())
    if schema.get("text") == pl.String:
        found["text"] = pl.String()
    reasoning = schema.get("reasoning")
    if isinstance(reasoning, pl.Struct) and all(field.dtype == pl.String for field in reasoning.fields):
        found["reasoning"] = reasoning
    return found


def _from_json(path: Path) -> pl.DataFrame:
    """Objects, one a line or all in one array. What Python and pandas write for a missing number (NaN) is one."""
    text = path.read_text("utf-8-sig")
    rows: list[dict[str, Any]] = []
    try:
        lines = filter(str.strip, text.split("\n"))
        whole = json.loads(text) if text.lstrip().startswith("[") else map(json.loads, lines)
        for number, row in enumerate(whole, 1):
            if not isinstance(row, dict):
                raise UserError(f"{path}: row {number} is no JSON object; {_ASKS}")
            rows.append(row)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: row {len(rows) + 1} is not JSON ({error}); {_ASKS}") from error
    return pl.DataFrame(rows, infer_schema_length=None, strict=False)


def _from_verl(folder: Path, fingerprint: str | None) -> pl.DataFrame:
    """example_id and prediction of all rows of the launch, by the answers in `STEP.jsonl`: of the step with the most
    answers, the last of several; null where there is none.

    verl writes the prompt as text and the answer, no ids: the launch folder's table of the same name (`test.parquet`
    beside `test/`) tells whose prompt it is, and its `reczero.json` how an answer is read.
    """
    steps = {int(path.stem): path for path in folder.glob("*.jsonl") if path.stem.isdigit()}
    if not steps:
        raise UserError(f"{folder}: holds no STEP.jsonl, as verl's trainer.validation_data_dir does; {_ASKS}")
    table, about = folder.parent / f"{folder.name}.parquet", folder.parent / "reczero.json"
    if not table.is_file() or not about.is_file():
        raise UserError(
            f"{folder}: {table.name} or reczero.json does not lie beside it; leave it in the folder that "
            "`reczero launch` wrote"
        )
    launched = read_json(folder.parent / "launch.json")
    if fingerprint is not None and (not isinstance(launched, dict) or launched.get("fingerprint") != fingerprint):
        raise UserError(f"{folder}: the launch was of other data than these, or of another split of them")
    try:
        rows = pl.read_parquet(table, columns=["prompt", "reward_model", "extra_info"])
        made = read_json(about)
        template = Template(RolloutRecipe.model_validate(made["rollout"]).template, Scale(**made["scale"]))
    except (pl.exceptions.PolarsError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder.parent}: is not as `reczero launch` writes it ({reason})") from error
    if other := {ids["split"] for ids in rows["extra_info"]} - {"test"}:
        raise UserError(
            f"{folder}: holds answers to {min(other)} rows; evaluate.sh of the launch leaves those to test rows"
        )
    unanswered: dict[str, list[tuple[str, str]]] = defaultdict(list)  # prompt -> (rating, example) of each
    for messages, truth, ids in rows.iter_rows():
        unanswered[_bare(messages[-1]["content"])].append((truth["ground_truth"], ids["example_id"]))
    begin = os.path.commonprefix(list(unanswered))
    end = os.path.commonprefix([prompt[::-1] for prompt in unanswered])[::-1]
    texts = {step: _lines(path) for step, path in steps.items()}
    last = max(texts, key=lambda step: (len(texts[step]), step))
    path = steps[last]
    found: list[tuple[str, float | None]] = []
    strange = 0
    for number, line in enumerate(texts[last], 1):
        try:
            entry = json.loads(line)
            prompt, answer, truth = _bare(entry["input"]), str(entry["output"]), str(entry["gts"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: is not as verl writes its answers ({error!r})") from error
        candidates = unanswered.get(prompt[prompt.find(begin) : prompt.rfind(end) + len(end)], [])
        # Equal prompts are told apart by their ratings; those with the same one stand for each other.
        one = next((one for one in candidates if one[0] == truth), None)
        if one is None:
            strange += 1
            continue
        candidates.remove(one)
        found.append((one[1], parse(answer, template).rating))
    if strange:
        raise UserError(
            f"{path}: {strange:,} of {strange + len(found):,} answers are to prompts that {table} does not hold, with "
            "another rating, or second ones to one: of another launch, or with val_kwargs.n above 1?"
        )
    found += [(example, None) for left in unanswered.values() for _, example in left]
    return pl.DataFrame(found, schema={"example_id": pl.String, "prediction": pl.Float64}, orient="row")


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text, as verl writes its answers") from error


def _bare(text: str) -> str:
    """Without white space, which a tokenizer may not give back as it was."""
    return re.sub(r"\s+", "", text)
