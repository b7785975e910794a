"""What a study has done and what it lacks, without loading a model or data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from lessonplan.evaluation.outcomes import open_runs
from lessonplan.study.files import read_json
from lessonplan.study.plan import UNTUNED
from lessonplan.study.store import open_folder


def status_table(path: Path) -> tuple[Table, list[str]]:
    """Return a table of arms by model, runs done of those planned, and sentences on the others.

    Raises:
        InputError: no study folder there.
    """
    folder = open_folder(path)
    plan = read_json(folder.plan_file)
    runs = [run for run in plan["runs"] if run["arm"] != UNTUNED]
    planned, done, states = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[str]()
    for run in runs:
        key, state = (run["model"], run["arm"]), folder.state(run)
        planned[key] += 1
        done[key] += state == "done"
        states[state] += 1
    models = list(dict.fromkeys(run["model"] for run in runs))
    table = Table(title=f"{escape(plan['study'])}: {states['done']} of {len(runs)} runs done")
    table.add_column("strategy")
    for model in models:
        table.add_column(escape(model), justify="right")
    for arm in dict.fromkeys(run["arm"] for run in runs):
        table.add_row(escape(arm), *(f"{done[m, arm]} of {planned[m, arm]}" for m in models))
    return table, open_runs(states["failed"], states["unfinished"], states["to do"])
