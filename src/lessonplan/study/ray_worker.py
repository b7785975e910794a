"""A worker of a Ray cluster, and what goes to and fro between it and the study's process.

Workers on one node share the hidden states, in a folder of the node's temporary directory that is
removed at the end (after a kill: when next a worker starts there).
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pickle
import platform
import shutil
import tempfile
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from lessonplan.errors import InputError
from lessonplan.models import NUMERICS
from lessonplan.models.loading import fingerprint, resolve
from lessonplan.study.files import read_json
from lessonplan.study.store import Folder
from lessonplan.study.watch import Watch
from lessonplan.study.work import ModelWork

# Seconds between two times that a worker says how far it is, and between two looks at that.
PAUSE = 0.5
PREFIX = "lessonplan-ray-"  # of the folders of all studies


@dataclass(frozen=True)
class Made:
    """What came of a run.

    Attributes:
        files: of its folder, by name, those that are new or changed.
        failure: why it failed.
    """

    files: dict[str, bytes]
    failure: str


@dataclass(frozen=True)
class Answer:
    """What a worker returns.

    Attributes:
        made: by run id; empty where nothing was done.
        apart: the runs cannot go in lock-step, and are to be given out one by one.
        unfit: why this node cannot do runs of this model at all.
    """

    made: dict[str, Made] = field(default_factory=dict)
    apart: bool = False
    unfit: str = ""


class Worker:
    """A Ray actor: one model in memory, which does the runs that it is given."""

    def __init__(self, news: Any, folder: str) -> None:
        self.watch = _Teller(news)
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            _remove_unused(left)
        self.shared = Path(tempfile.gettempdir()) / folder
        self.held = _enter(self.shared)
        self.scratch = self.shared / f"worker-{os.getpid()}"

    def ready(self, packed: bytes, model: str, digest: str, numerics: int) -> Answer:
        """Make ready for the runs of a model. It is loaded for the first of them."""
        try:
            plan = pickle.loads(packed)
            here = replace(plan.models[0], folder=_home(model, digest, numerics))
        except Exception as error:  # whatever it is, another node may do better
            return Answer(unfit=f"{type(error).__name__}: {error}")
        self.runs = {run.id: run for run in here.runs}
        self.folder = Folder(self.scratch)
        self.work = ModelWork(plan, here, self.folder, self.shared, self.watch)
        return Answer()

    def do(self, sent: dict[str, dict[str, bytes]]) -> Answer:
        """Do what runs lack that go in lock-step, or what one run lacks.

        Args:
            sent: by run id, the files that there are of it, by name.
        """
        runs = [self.runs[run_id] for run_id in sent]
        self.watch.begin_runs(runs[0].id)
        done = True
        try:
            for run_id, files in sent.items():
                write_files(self.folder.tuning(run_id), files)
            if len(runs) > 1:
                done = self.work.done_in_lockstep(runs)
            else:
                self.work.do(runs[0])
            made = {run_id: self._made(run_id, files) for run_id, files in sent.items()}
        except OSError as error:  # this node's disk
            return Answer(unfit=str(error))
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
        if self.work.problem is not None:
            return Answer(unfit=str(self.work.problem))
        return Answer(made) if done else Answer(apart=True)

    def _made(self, run_id: str, sent: dict[str, bytes]) -> Made:
        found = read_files(self.folder.tuning(run_id))
        files = {name: content for name, content in found.items() if sent.get(name) != content}
        failure = self.folder.failure(run_id)
        return Made(files, read_json(failure)["reason"] if failure.is_file() else "")


def do_task(packed: bytes, model: str, digest: str, numerics: int, news: Any) -> pa.Table | str:
    """Do a labelling model's task; return why it cannot be done where the input is to blame."""
    try:
        return pickle.loads(packed)(_home(model, digest, numerics), _Teller(news))
    except InputError as error:
        return f"On node {platform.node()}: {error}"


def _home(model: str, digest: str, numerics: int) -> Path:
    """Return the folder of a model on this node.

    Raises:
        InputError: it is not there, or it or lessonplan is another than in the study.
    """
    if numerics != NUMERICS:
        raise InputError(
            "This node has another version of lessonplan, whose results differ. Install the same."
        )
    home = resolve(model)
    if fingerprint(home) != digest:
        raise InputError(
            f"{home} holds another model than the one that the study was planned with."
        )
    return home


class News:
    """A Ray actor that workers tell how it goes."""

    def __init__(self) -> None:
        self.items: list[tuple[Any, ...]] = []

    def tell(self, *item: Any) -> None:
        self.items.append(item)

    def take(self) -> list[tuple[Any, ...]]:
        """Return what was told since the last time: run id, method of a `Watch`, arguments.

        The run is the first of those that a worker does together.
        """
        items, self.items = self.items, []
        return items


class _Teller(Watch):
    """Tells the news what a worker has to say, and how far it is every now and then."""

    def __init__(self, news: Any) -> None:
        self.news, self.run_id = news, ""
        self.work, self.trained, self.told = 0.0, 0, 0.0
        # What is printed here is seen by nobody.
        warnings.showwarning = lambda message, category, *_, **__: self._tell(
            "warned", str(message), category
        )

    def begin_runs(self, first: str) -> None:
        """What follows is of these runs. What is not told yet of others stands in their result."""
        self.run_id, self.work, self.trained = first, 0.0, 0

    def _tell(self, kind: str, *values: Any) -> None:
        self.news.tell.remote(self.run_id, kind, *values)

    def _is_time(self) -> bool:
        due = time.monotonic() - self.told > PAUSE
        if due:
            self.told = time.monotonic()
        return due

    def progress(self, text: str, done: int, total: int) -> None:
        if done in (0, total) or self._is_time():
            self._tell("progress", text, done, total)

    def note(self, text: str) -> None:
        self._tell("note", text)

    def say(self, text: str) -> None:
        self._tell("say", text)

    def worked(self, work: float, trained: int = 0) -> None:
        self.work += work
        self.trained += trained
        if self._is_time():
            self._tell("worked", self.work, self.trained)
            self.work, self.trained = 0.0, 0


# ---- Files ---------------------------------------------------------------------------------------


class _Packer(pickle.Pickler):
    """Packs questions with their content; their own way may be to name a file of this machine."""

    def reducer_override(self, thing: Any) -> Any:
        from datasets import Dataset

        if isinstance(thing, Dataset):
            return Dataset, (thing.with_format("arrow")[:],)
        return NotImplemented


def packed(thing: Any) -> bytes:
    out = io.BytesIO()
    _Packer(out, protocol=pickle.HIGHEST_PROTOCOL).dump(thing)
    return out.getvalue()


def read_files(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder by their names in it."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _enter(folder: Path) -> int:
    """Make a folder that several processes use, and return what holds it while one lives."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            held = os.open(folder, os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_SH)
            if folder.exists() and os.path.samestat(os.stat(folder), os.fstat(held)):
                return held
            os.close(held)  # removed by another process before it was held


def _remove_unused(folder: Path) -> bool:
    """Remove a folder that no living process has entered; say whether it is gone."""
    try:
        held = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except PermissionError:  # another user's
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(held)


def clear(folder: str) -> None:
    """Remove a folder of this node as soon as its workers are gone."""
    deadline = time.monotonic() + 5
    while not _remove_unused(Path(tempfile.gettempdir()) / folder):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
