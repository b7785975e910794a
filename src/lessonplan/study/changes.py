"""What a study asks for now and did not ask for when its folder was last written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lessonplan.study.files import read_json
from lessonplan.study.plan import Plan, run_title
from lessonplan.study.store import TUNING, Folder, held_settings


def changes(folder: Folder, plan: Plan) -> list[str]:
    """Return what the user should know of the difference, before `begin` writes it over.

    Settings are named with both values. Finished runs that no longer follow from the study file
    are kept, since it may be changed back, but no table shows them.
    """
    if not folder.study_file.is_file():
        return []
    said = []
    settings = list(_differences("", held_settings(folder), plan.study.model_dump(mode="json")))
    if settings:
        said.append(f"Changed since the last start: {'; '.join(settings)}.")
    unasked = unasked_runs(folder, plan)
    if unasked:
        more = f"; and {len(unasked) - 5} more" if len(unasked) > 5 else ""
        said.append(
            f"The study no longer asks for {len(unasked)} of the finished runs in "
            f"{folder.path / 'tunings'}; they are kept but not shown: "
            f"{'; '.join(unasked[:5])}{more}."
        )
    return said


def unasked_runs(folder: Folder, plan: Plan) -> list[str]:
    """Return the finished runs that the study does not ask for, each with its id."""
    asked = {run.id for run in plan.runs}
    found = []
    for file in (folder.path / "tunings").glob(f"*/{TUNING}"):
        if file.parent.name not in asked:
            run = read_json(file)
            title = run_title(run["model"], run["arm"], run["seed"], run["fold"])
            found.append(f"{title} ({file.parent.name})")
    return sorted(found)


def _differences(key: str, before: Any, now: Any) -> Iterator[str]:
    """Yield "key: before -> now" for each setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            inner = f"{key}.{name}" if key else name
            yield from _differences(inner, before.get(name), now.get(name))
    elif _entries(before) and _entries(now):
        old, new = _by_name(before), _by_name(now)
        if list(old) != list(new):
            yield f"{key}: {', '.join(old)} -> {', '.join(new)}"
        for name in [name for name in old if name in new]:
            yield from _differences(f"{key}[{name}]", old[name], new[name])
    elif before != now:
        yield f"{key}: {_shown(before)} -> {_shown(now)}"


def _entries(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _by_name(entries: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("name", "model", "data", "strategy")
    return {next(str(entry[k]) for k in keys if entry.get(k)): entry for entry in entries}


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
