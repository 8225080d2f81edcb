"""Predictions that were made elsewhere: a file with `example_id` and `prediction`, in one of three formats."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from reczero.errors import UserError
from reczero.files import separator_of

_ASKS = "it takes a CSV, JSON lines or Parquet with the columns example_id and prediction"


def read_predictions_file(path: Path) -> pl.DataFrame:
    """example_id (str) and prediction (float, null where a row has no number), and `tokens`, `seconds` if it tells
    them.

    Raises UserError. A prediction that is no number is one row's failure, and no reason to refuse the others.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; {_ASKS}")
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
        return numbers.select(pl.col("example_id").cast(pl.String), *finite)
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path}: a column holds neither text nor numbers ({str(error).splitlines()[0]}); {_ASKS}"
        ) from error


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
