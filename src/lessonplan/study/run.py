"""Doing what a study lacks: in this process, in several side by side, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lessonplan.errors import InputError, counted
from lessonplan.models.loading import release
from lessonplan.study.changes import changes
from lessonplan.study.config import Study
from lessonplan.study.model_labels import compute_here
from lessonplan.study.plan import Plan, make_plan
from lessonplan.study.store import Folder, begin, check_runs, claim, clear, locked, remove_broken
from lessonplan.study.watch import Watch
from lessonplan.study.work import ModelWork, cost, lockstep_groups, missing

if TYPE_CHECKING:
    from lessonplan.study.on_ray import Cluster


def run_study(
    study: Study,
    path: str | os.PathLike[str],
    watch: Watch | None = None,
    *,
    repair: bool = False,
    ray: str | None = None,
) -> Plan:
    """Run what a study folder lacks, and nothing else.

    A run is written under its final name only when whole, so at any moment the process may be
    killed; the next start goes on with what is missing. A run that fails is written down under
    ``failures/`` with its reason, and tried again at the next start.

    Args:
        study: the study.
        path: its folder.
        watch: is told how it goes.
        repair: remove and redo finished runs of which a file is not as it was written.
        ray: do the runs, and what models do for labels, on the Ray cluster at this address;
            "local" starts one on this machine. See `lessonplan.study.on_ray`.

    Raises:
        InputError: bad data, labels, models or settings; a folder that holds another study or that
            another process works in; a finished run that needs `repair`; a Ray cluster that cannot
            be reached or has too little room.
        OSError: the disk is full or fails. Finished runs are kept.
    """
    watch = watch or Watch()
    folder = Folder(Path(path))
    claim(folder, study.name)  # before the lock, which is a file: a stranger's folder gets none
    with locked(folder), _cluster(ray, study) as cluster:
        watch.say("reading questions, labels and tokens")
        claim(folder, study.name)
        clear(folder)
        plan = make_plan(study, folder.labels, watch, cluster.compute if cluster else compute_here)
        # Two arms can come to the same order (with one category, say): then they share one run.
        runs = {run.id: run for run in plan.runs}
        watch.say("checking finished runs")
        if repair:
            for note in remove_broken(folder, runs):
                watch.note(note)
        else:
            check_runs(folder, runs)
        for note in changes(folder, plan):
            watch.note(note)
        begin(folder, plan)
        lacking = [run for run in runs.values() if missing(folder, run)]
        work = sum(cost(folder, run) for run in lacking)
        watch.begin(len(runs), len(runs) - len(lacking), work)
        if cluster:
            cluster.do_runs(plan, lacking, folder, watch)
            return plan
        with _shared_states(folder) as shared:
            together = lockstep_groups(folder, plan, lacking)
            groups = [[run.id for run in group] for group in together]
            workers = min(study.workers, len(groups))
            for note in _cores_used(plan, workers, len(groups)):
                watch.note(note)
            if workers > 1:
                _in_processes(plan, groups, folder, shared, watch, workers)
            else:
                _in_this_process(plan, iter(groups), folder, shared, watch)
        return plan


def _cluster(address: str | None, study: Study) -> AbstractContextManager[Cluster | None]:
    if address is None:
        return nullcontext()
    from lessonplan.study.on_ray import connected

    return connected(address, study)


def _cores_used(plan: Plan, workers: int, lacking: int) -> Iterator[str]:
    """Say where cores stay idle that could do runs, or where there are too few of them."""
    recipes = [model.recipe for model in plan.models]
    if not lacking or any(recipe.device != "cpu" for recipe in recipes):
        return
    threads = max(recipe.threads for recipe in recipes)
    cores = _cores()
    they = f"{counted(workers, 'worker')} of {counted(threads, 'thread')}"
    if workers > 1 and workers * threads > cores:
        yield (
            f"{they} each get in each other's way on {counted(cores, 'core')}. Fewer are faster, "
            "and give the same results."
        )
    could = min(cores // threads, lacking)
    if could > workers:
        yield (
            f"There are {cores} cores, and {they} cannot use them all. `workers: {could}` would "
            "take less time and give the same results; each holds the model in memory."
        )


def _cores() -> int:
    """Return how many cores this process may use, by its affinity and a container's quota."""
    import joblib

    cores: int = joblib.cpu_count(only_physical_cores=True)
    return cores


@contextmanager
def _shared_states(folder: Folder) -> Iterator[Path]:
    """Yield a folder for hidden states; if this process is killed, the next start removes it."""
    shared = folder.path / f".writing-{os.getpid()}-hidden"
    shared.mkdir()
    try:
        yield shared
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def _in_this_process(
    plan: Plan, groups: Iterator[list[str]], folder: Folder, shared: Path, watch: Watch
) -> None:
    """Do groups of runs one after the other; a model stays in memory while runs ask for it."""
    places = {run.id: (model, run) for model in plan.models for run in model.runs}
    work: ModelWork | None = None
    for group in groups:
        model, _ = places[group[0]]
        if work is None or work.model is not model:
            if work is not None:  # before the next model comes into memory
                work = None
                release()
            work = ModelWork(plan, model, folder, shared, watch)
        work.do_in_lockstep([places[run_id][1] for run_id in group])


def _in_processes(
    plan: Plan,
    groups: Sequence[list[str]],
    folder: Folder,
    shared: Path,
    watch: Watch,
    workers: int,
) -> None:
    """Do runs side by side. Each worker takes the next group when it has finished one."""
    context = multiprocessing.get_context("spawn")
    tasks: Any = context.Queue()
    news: Any = context.Queue()
    for item in [*groups, *([None] * workers)]:
        tasks.put(item)
    processes = [
        context.Process(target=_worker, args=(plan, folder, shared, tasks, news), daemon=True)
        for _ in range(workers)
    ]
    try:
        # A terminal sends Ctrl-C to workers, too. Blocked in them, it is left to us to end them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for process in processes:
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        ended = 0
        while ended < workers:
            kind, *values = _next_news(news, processes)
            if kind == "ended":
                ended += 1
            elif kind == "input error":
                raise InputError(*values)
            elif kind == "disk":
                raise OSError(*values)
            elif kind == "crashed":
                raise RuntimeError(*values)
            elif kind == "lost":
                raise ChildProcessError(*values)
            else:
                getattr(watch, kind)(*values)
    finally:
        started = [process for process in processes if process.pid is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _next_news(news: Any, processes: Sequence[Any]) -> tuple[Any, ...]:
    import queue

    while True:
        try:
            found: tuple[Any, ...] = news.get(timeout=1)
            return found
        except queue.Empty:
            codes = [process.exitcode for process in processes]
            failed = [code for code in codes if code not in (None, 0)]
            if failed or (None not in codes and news.empty()):
                return (
                    "lost",
                    f"A worker ended with status {failed[0] if failed else 0} (-9 is usually a "
                    "lack of memory: give fewer workers). Finished runs are kept; start again.",
                )


class _Teller(Watch):
    """Sends what a worker has to say to the process that draws it."""

    def __init__(self, news: Any) -> None:
        self._news = news

    def note(self, text: str) -> None:
        self._news.put(("note", text))

    def say(self, text: str) -> None:
        self._news.put(("say", text))

    def worked(self, work: float, trained: int = 0) -> None:
        self._news.put(("worked", work, trained))

    def run_done(self) -> None:
        self._news.put(("run_done",))

    def failed(self, text: str) -> None:
        self._news.put(("failed", text))


def _worker(plan: Plan, folder: Folder, shared: Path, tasks: Any, news: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _in_this_process(plan, iter(tasks.get, None), folder, shared, _Teller(news))
        news.put(("ended",))
    except InputError as error:
        news.put(("input error", str(error)))
    except OSError as error:
        news.put(("disk", error.errno, error.strerror or str(error), error.filename))
    except BaseException:
        news.put(("crashed", traceback.format_exc()))


def _end_with_parent() -> None:
    """End at once when the parent is killed, so that no orphan writes beside the next start."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
