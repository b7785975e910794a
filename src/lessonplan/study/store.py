"""The study folder: what lands on disk, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from filelock import FileLock, Timeout

from lessonplan.errors import InputError
from lessonplan.study.checksums import faults
from lessonplan.study.files import read_json, slug, write_table, write_text
from lessonplan.study.plan import UNTUNED, Plan
from lessonplan.study.sets import QuestionSet
from lessonplan.study.study_file import dump_study

TUNING = "tuning.json"
State = Literal["done", "failed", "unfinished", "to do"]


@dataclass(frozen=True)
class Folder:
    """The layout of a study folder.

    study.yaml                              the configuration as resolved
    plan.json                               which runs the study asks for, by id
    data/<set>.parquet                      the questions and their labels
    labels/                                 what labels were made from, by content
    tunings/<id>/tuning.json                what was run, how it went
    tunings/<id>/SHA256SUMS                 checksums of all other files of the run
    tunings/<id>/order.parquet              what the model saw when
    tunings/<id>/adapter/                   PEFT format
    tunings/<id>/evaluations/<id>.parquet   log-likelihoods and choices
    failures/<id>.json                      why a run failed
    report/                                 index.html, tables, figures
    """

    path: Path

    @property
    def study_file(self) -> Path:
        return self.path / "study.yaml"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def labels(self) -> Path:
        return self.path / "labels"

    def data(self, name: str) -> Path:
        return self.path / "data" / f"{slug(name)}.parquet"

    def tuning(self, run_id: str) -> Path:
        return self.path / "tunings" / run_id

    def evaluation(self, run_id: str, evaluation_id: str) -> Path:
        return self.tuning(run_id) / "evaluations" / f"{evaluation_id}.parquet"

    def failure(self, run_id: str) -> Path:
        return self.path / "failures" / f"{run_id}.json"

    def has_tuning(self, run_id: str) -> bool:
        return (self.tuning(run_id) / TUNING).is_file()

    def has_evaluation(self, run_id: str, evaluation_id: str) -> bool:
        return self.evaluation(run_id, evaluation_id).is_file()

    def state(self, run: dict[str, Any]) -> State:
        """Say how far a run of plan.json is.

        It is done when it is tuned and scored at its end on every set; unfinished when a part of
        that is there, or a folder that a killed process (or one at work now) has left.
        """
        finals = [e["id"] for e in run["evaluations"] if e["kind"] == "final"]
        tuned = self.has_tuning(run["id"])
        if tuned and all(self.has_evaluation(run["id"], e) for e in finals):
            return "done"
        if self.failure(run["id"]).is_file():
            return "failed"
        begun = tuned or any((self.path / "tunings").glob(f".writing-{run['id']}-*"))
        return "unfinished" if begun else "to do"


def open_folder(path: Path) -> Folder:
    """Return the folder of an existing study.

    Raises:
        InputError: there is none.
    """
    folder = Folder(path)
    if not folder.plan_file.is_file():
        raise InputError(
            f"{path} is no study folder: it has no plan.json. Run `lessonplan study` first."
        )
    return folder


def check_runs(folder: Folder, run_ids: Iterable[str], *, adapters: bool = True) -> None:
    """Make sure that the files of finished runs are as they were written.

    Args:
        adapters: check the adapters as well; a report does not read them.

    Raises:
        InputError: names those that are not, and says what to do.
    """
    broken = _broken_runs(folder, run_ids, adapters)
    if not broken:
        return
    said = [fault for found in broken.values() for fault in found]
    more = f" And {len(said) - 5} more." if len(said) > 5 else ""
    raise InputError(
        f"{' '.join(said[:5])}{more} Put back what was there, or run the study with --repair "
        f"(`lessonplan study FILE -o {folder.path} --repair`) to remove and redo "
        f"{'the run' if len(broken) == 1 else f'the {len(broken)} runs'} concerned."
    )


def remove_broken(folder: Folder, run_ids: Iterable[str]) -> list[str]:
    """Remove finished runs whose files are not as they were written; say which and why."""
    broken = _broken_runs(folder, run_ids)
    for run_id in broken:
        # All of it or, if killed, none: a half is cleared away by the next start.
        scratch = folder.tuning(run_id).with_name(f".writing-{os.getpid()}-removed")
        folder.tuning(run_id).rename(scratch)
        shutil.rmtree(scratch)
    return [f"{' '.join(found)} The run is done again." for found in broken.values()]


def _broken_runs(
    folder: Folder, run_ids: Iterable[str], adapters: bool = True
) -> dict[str, list[str]]:
    return {
        run_id: found
        for run_id in dict.fromkeys(run_ids)
        if folder.has_tuning(run_id) and (found := faults(folder.tuning(run_id), adapters=adapters))
    }


@contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Hold a study folder, so that no second process writes to it.

    Raises:
        InputError: another process holds it; says which.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.path / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        holder = _read_text(folder.path / ".holder")
        raise InputError(
            f"Another process is at work in {folder.path}{holder and ': ' + holder}."
        ) from None
    except OSError as error:
        raise InputError(f"{folder.path} cannot be written to: {error.strerror}.") from None
    try:
        (folder.path / ".holder").write_text(f"process {os.getpid()} on {os.uname().nodename}")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder.path / ".holder").unlink()
        lock.release()


def claim(folder: Folder, name: str) -> None:
    """Make sure that a folder is free for a study of this name, or holds it already.

    Nothing is written. A study.yaml is a study's own only beside what else a start leaves.

    Raises:
        InputError: the folder holds another study, or files that are none.
    """
    begun = folder.plan_file.is_file() or (folder.path / ".lock").is_file()
    if begun and folder.study_file.is_file():
        held = held_settings(folder).get("name")
        if held != name:
            raise InputError(
                f"{folder.path} holds another study ({held!r}, not {name!r}). Give another folder "
                "with -o, or the same name in the study file."
            )
    elif folder.path.is_dir() and any(
        p.name not in (".lock", ".holder", "labels") and not p.name.startswith(".writing-")
        for p in folder.path.iterdir()
    ):
        raise InputError(
            f"{folder.path} is not empty and holds no study. Give another folder with -o."
        )


def clear(folder: Folder) -> None:
    """Remove what a killed process left half done."""
    for left in folder.path.glob("**/.writing-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def begin(folder: Folder, plan: Plan) -> None:
    """Write down what is to be run.

    Raises:
        InputError: two question sets would lie in the same file.
    """
    files: dict[Path, str] = {}
    for questions in plan.training + plan.evaluation:
        other = files.setdefault(folder.data(questions.name), questions.name)
        if other != questions.name:
            raise InputError(
                f"The sets {other!r} and {questions.name!r} would lie in the same file "
                f"({folder.data(other).name}). Give one of them another name."
            )
    write_text(folder.study_file, dump_study(plan.study))
    for questions in plan.training + plan.evaluation:
        write_table(folder.data(questions.name), _question_table(questions))
    record = _plan_record(plan) | {"first_seeds": _first_seeds(folder, plan)}
    write_text(folder.plan_file, json.dumps(record, indent=1, ensure_ascii=False))
    asked = {run.id for run in plan.runs}
    for file in (folder.path / "failures").glob("*.json"):
        if file.stem not in asked:
            file.unlink()


def _first_seeds(folder: Folder, plan: Plan) -> list[int]:
    """Return the seeds that the study asked for when no run was finished yet."""
    try:
        before = read_json(folder.plan_file)
    except InputError:  # there is none, or it is broken and about to be made anew
        return plan.study.seeds
    if any(run["arm"] != UNTUNED and folder.has_tuning(run["id"]) for run in before["runs"]):
        first: list[int] = before.get("first_seeds", before["seeds"])
        return first
    return plan.study.seeds


def _question_table(questions: QuestionSet) -> pa.Table:
    data = questions.questions
    columns: dict[str, Any] = {
        name: data[name][:] for name in ("id", "question", "options", "answer")
    }
    columns |= {"category": data["category"][:], "difficulty": data["difficulty"][:]}
    for (kind, source), label in questions.labels.items():
        columns[f"{kind}: {source}"] = list(label.values)
        if label.place is not None:
            columns[f"place: {kind}: {source}"] = list(label.place)
    if questions.fold is not None:
        columns["fold"] = questions.fold
    return pa.table(columns)


def _plan_record(plan: Plan) -> dict[str, Any]:
    study = plan.study
    return {
        "study": study.name,
        "baseline": study.baseline,
        "scoring": study.scoring.model_dump(),
        "seeds": study.seeds,
        "training": [q.name for q in plan.training],
        "evaluation": [q.name for q in plan.evaluation],
        "folds": {q.name: int(q.fold.max()) + 1 for q in plan.training if q.fold is not None},
        "recipes": {m.spec.title: m.recipe.model_dump() for m in plan.models},
        "labels": [
            {"training": q.name, "kind": kind, "source": source, "origin": label.origin}
            for q in plan.training
            for (kind, source), label in q.labels.items()
        ],
        "notes": plan.notes,
        "runs": [
            {
                "id": run.id,
                "model": run.model,
                "training": run.training,
                "arm": run.arm,
                "strategy": run.strategy,
                "sources": run.sources,
                "seed": run.seed,
                "fold": run.fold,
                "evaluations": [{"id": e.id, "of": e.of, "kind": e.kind} for e in run.evaluations],
            }
            for run in plan.runs
        ],
    }


def held_settings(folder: Folder) -> dict[str, Any]:
    """Return what study.yaml holds, as the last start wrote it.

    Raises:
        InputError: it cannot be read.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        held = YAML(typ="safe").load(folder.study_file.read_text(encoding="utf-8"))
    except (YAMLError, ValueError, OSError):
        held = None
    if not isinstance(held, dict):
        raise InputError(f"{folder.study_file} cannot be read. Give another folder with -o.")
    return held


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
