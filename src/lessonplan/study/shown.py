"""What each run of a study saw when: the categories along its order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lessonplan.study.files import read_table
from lessonplan.study.store import Folder


def shown_categories(
    folder: Folder, training: pa.Table, runs: Sequence[dict[str, Any]], seeds: Sequence[int]
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """Return `Outcome.shown` and `Outcome.taught` for the runs on one training set.

    The categories are the data's own: those that the evaluation set has, too. Both are empty where
    the data has none, or where folds give a seed several orders.
    """
    column = training["category"]
    if column.null_count == len(training) or any(run["fold"] is not None for run in runs):
        return {}, []
    names = sorted({str(name) for name in column.to_pylist() if name is not None})
    number = {name: i for i, name in enumerate(names)}
    code = {
        identifier: -1 if name is None else number[str(name)]
        for identifier, name in zip(training["id"].to_pylist(), column.to_pylist(), strict=True)
    }
    shown: dict[str, NDArray[np.int64]] = {}
    for run in runs:
        file = folder.tuning(run["id"]) / "order.parquet"
        if file.is_file():
            order = [code[identifier] for identifier in read_table(file)["id"].to_pylist()]
            rows = shown.setdefault(run["arm"], np.full((len(seeds), len(order)), -1))
            rows[list(seeds).index(run["seed"])] = order
    return shown, names
