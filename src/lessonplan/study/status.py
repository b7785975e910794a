"""What a study has done and what it lacks, without loading a model or data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from lessonplan.study.files import read_json
from lessonplan.study.plan import UNTUNED
from lessonplan.study.store import open_folder


def status_table(path: Path) -> Table:
    """Return a table of arms by model: runs done of those planned, and those that failed.

    Raises:
        InputError: no study folder there.
    """
    folder = open_folder(path)
    plan = read_json(folder.plan_file)
    runs = [run for run in plan["runs"] if run["arm"] != UNTUNED]
    planned, done, failed = Counter[tuple[str, str]](), Counter[tuple[str, str]](), 0
    for run in runs:
        key = (run["model"], run["arm"])
        planned[key] += 1
        done[key] += folder.has_result(run)
        failed += folder.failure(run["id"]).is_file()
    models = list(dict.fromkeys(run["model"] for run in runs))
    table = Table(
        title=f"{escape(plan['study'])}: {sum(done.values())} of {len(runs)} runs done"
        + (f", {failed} failed" if failed else "")
    )
    table.add_column("strategy")
    for model in models:
        table.add_column(escape(model), justify="right")
    for arm in dict.fromkeys(run["arm"] for run in runs):
        table.add_row(escape(arm), *(f"{done[m, arm]} of {planned[m, arm]}" for m in models))
    return table
