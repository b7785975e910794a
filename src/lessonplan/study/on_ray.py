"""Doing what a study lacks on a Ray cluster.

The process that was started plans the study, hands out its runs and alone writes its folder;
workers send back what they made as bytes, so that no disk need be shared. Workers are Ray actors,
each with one model in memory. Those on one node share the hidden states, in a folder of the node's
temporary directory that is removed at the end (after a kill: when next a worker starts there).

Every node needs the same lessonplan, and the study's models under the names that the study file
gives them: presets, hub ids, or folders and GGUF files at the same path. A node that lacks one does
no runs of it; if none is left, these runs fail, and the reason names the node.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pickle
import platform
import shutil
import socket
import tempfile
import time
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from lessonplan.errors import InputError, first_line
from lessonplan.models import NUMERICS
from lessonplan.models.loading import fingerprint, resolve
from lessonplan.models.presets import PRESETS
from lessonplan.study.config import Study, model_recipe
from lessonplan.study.files import new_file, new_folder
from lessonplan.study.labelling import Task
from lessonplan.study.plan import Plan, Run
from lessonplan.study.store import Folder
from lessonplan.study.watch import Watch
from lessonplan.study.work import ModelWork, cost, write_failure
from lessonplan.training.recipe import Recipe

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise InputError("--ray needs Ray: pip install 'lessonplan[ray]'.") from None

# So many workers may die over a run before it is given up.
TRIES = 3
# Seconds between two looks at what workers have to say, and between two times that they say it.
PAUSE = 0.5
# Bytes of memory that a Ray of our own keeps for results on their way; what is more goes to disk.
STORE = 256 * 2**20
PREFIX = "lessonplan-ray-"


# ---- The cluster ---------------------------------------------------------------------------------


@contextlib.contextmanager
def connected(address: str, study: Study) -> Iterator[Cluster]:
    """Yield a Ray cluster that has room for the runs of a study.

    Args:
        address: as `ray.init` takes it; "local" starts a Ray on this machine and ends it.

    Raises:
        InputError: no cluster can be reached there, or none of its nodes offers what a run takes.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "local":
            ray.init("local", include_dashboard=False, object_store_memory=STORE, **quiet)
        else:
            _knock(address)
            ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"No Ray cluster can be reached at {address} ({first_line(error)}). Give --ray the "
            "address that `ray start --head` printed (host:port), or local."
        ) from error
    # Nor shall Ray print what its daemons say when a node dies: a note tells of it. There is no
    # other switch.
    ray._private.worker._worker_logs_enabled = False
    try:
        yield Cluster(study)
    finally:
        ray.shutdown()
        ray._private.worker._worker_logs_enabled = True


def _knock(address: str) -> None:
    """Raise an OSError where nothing answers: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


class Cluster:
    """The Ray cluster that this process is connected to, for one study."""

    def __init__(self, study: Study) -> None:
        self.resources = study.resources
        self.folder = f"{PREFIX}{uuid.uuid4().hex}"
        for model in study.models:
            self._require(model_recipe(study, model))
        here = ray.get_runtime_context().get_node_id()
        self.news: Any = ray.remote(_News).options(num_cpus=0, **_on(here)).remote()

    def asked(self, recipe: Recipe) -> dict[str, float]:
        """Return what a run takes of a node, as Ray calls it (memory in bytes)."""
        given = self.resources
        asked = {
            "CPU": recipe.threads if given.cpus is None else given.cpus,
            "GPU": recipe.device.startswith("cuda") if given.gpus is None else given.gpus,
            "memory": given.memory or 0,
        }
        return {name: float(amount) for name, amount in asked.items() if amount}

    def options(self, recipe: Recipe) -> dict[str, Any]:
        """Return how to start what a run's recipe needs."""
        asked = self.asked(recipe)
        return {
            "num_cpus": asked["CPU"],
            "num_gpus": asked.get("GPU", 0),
            "memory": asked.get("memory"),
            # Ray would set it to the CPUs that are reserved.
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(recipe.threads)}},
        }

    def _require(self, recipe: Recipe) -> None:
        asked, nodes = self.asked(recipe), _nodes()
        if not any(_room(node, asked) for node in nodes.values()):
            raise InputError(
                f"resources: a run takes {_amounts(asked)}, and no node of the Ray cluster has "
                "that. There are "
                + "; ".join(
                    f"{n['NodeManagerHostname']}: {_amounts(_has(n))}" for n in nodes.values()
                )
                + ". Ask for less in the study file."
            )

    def compute(self, tasks: Sequence[Task], watch: Watch) -> Iterator[pa.Table]:
        """Do the tasks of models that label, and yield their tables in the tasks' order.

        Raises:
            InputError: a model cannot be had on a node, or no node has room for it.
            ChildProcessError: workers died over a task again and again.
        """
        made = []
        for task in tasks:
            self._require(task.recipe)
            # One call a process, so that its memory is free for the next.
            options = self.options(task.recipe) | {"max_calls": 1, "max_retries": TRIES - 1}
            made.append(
                ray.remote(**options)(_do_task).remote(
                    _packed(task.call), _name(task.model), task.digest, NUMERICS, self.news
                )
            )
        for result in made:
            while not ray.wait([result], timeout=PAUSE)[0]:
                self._pass_on(watch)
            self._pass_on(watch)
            try:
                found = ray.get(result)
            except RayTaskError:
                raise
            except RayError as error:
                raise ChildProcessError(
                    f"{TRIES} workers died over a label: {_cause(error)}"
                ) from error
            if isinstance(found, str):
                raise InputError(found)
            yield found

    def _pass_on(self, watch: Watch) -> None:
        for _, kind, *values in ray.get(self.news.take.remote()):
            _tell(watch, kind, values)

    def do_runs(self, plan: Plan, lacking: Sequence[Run], folder: Folder, watch: Watch) -> None:
        """Do runs, as many side by side as the cluster has room for."""
        _Shift(self, plan, lacking, folder, watch).do()


def _nodes() -> dict[str, dict[str, Any]]:
    """Return the nodes that are alive, by id."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node for node in nodes if node["Alive"]}


def _on(node: str) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def _has(node: dict[str, Any]) -> dict[str, float]:
    return {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU", "memory")}


def _room(node: dict[str, Any], asked: dict[str, float]) -> int:
    """Return how many runs a node that does nothing else has room for."""
    has = _has(node)
    return min(int(has[name] / amount + 1e-9) for name, amount in asked.items())


def _amounts(resources: dict[str, float]) -> str:
    counts = {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
    said = [f"{n:g} {name}{'' if n == 1 else 's'}" for name, n in counts.items() if n]
    if memory := resources.get("memory"):
        said.append(f"{memory / 2**30:.3g} GiB of memory")
    return ", ".join(said) or "nothing"


def _name(model: str) -> str:
    """Return a model's name as it is understood in any working directory."""
    path = Path(model).expanduser()
    return str(path.resolve()) if model not in PRESETS and path.exists() else model


# ---- Handing out runs ----------------------------------------------------------------------------


@dataclass
class _Hired:
    """A worker, as the process that hands out runs sees it.

    Attributes:
        node, host: the node's id, and what messages call it.
        run: what it does; None until it is ready.
        owed: the work of this run.
        work, trained: so much of it the watch was told.
    """

    actor: Any
    model: str
    node: str
    host: str
    run: Run | None = None
    owed: float = 0.0
    work: float = 0.0
    trained: int = 0


class _Shift:
    """The runs that a study lacks, and the workers that do them."""

    def __init__(
        self, cluster: Cluster, plan: Plan, lacking: Sequence[Run], folder: Folder, watch: Watch
    ) -> None:
        self.cluster, self.plan, self.folder, self.watch = cluster, plan, folder, watch
        self.models = {model.spec.title: model for model in plan.models}
        self.waiting: dict[str, deque[Run]] = {title: deque() for title in self.models}
        places = {run.id: model.spec.title for model in plan.models for run in model.runs}
        for run in lacking:
            self.waiting[places[run.id]].append(run)
        self.packed: dict[str, Any] = {}
        self.busy: dict[Any, _Hired] = {}  # by what it will return
        self.deaths: Counter[Any] = Counter()  # by run, or by model and node before there is one
        self.refused: dict[tuple[str, str], str] = {}  # by model and node
        self.used: set[str] = set()

    def do(self) -> None:
        try:
            while True:
                self._hire()
                self._give_up()
                if not self.busy:
                    return
                ready, _ = ray.wait(list(self.busy), timeout=PAUSE)
                self._hear()
                for result in ready:
                    self._take(result)
                self._let_go()
        finally:
            self._dismiss()

    def _hire(self) -> None:
        """Start workers wherever there may be room, as long as runs wait for one.

        Where others use the cluster, a worker that is started may have to wait as well.
        """
        nodes = _nodes()
        for title, runs in self.waiting.items():
            if self.models[title].problem is not None:
                continue
            own = [worker for worker in self.busy.values() if worker.model == title]
            asked = self.cluster.asked(self.models[title].recipe)
            room = {id: _room(node, asked) for id, node in nodes.items()}
            for worker in own:
                room[worker.node] = room.get(worker.node, 0) - 1
            room = {id: n for id, n in room.items() if n > 0 and (title, id) not in self.refused}
            for _ in range(len(runs) - sum(worker.run is None for worker in own)):
                if not room:
                    break
                node = max(room, key=lambda id: room[id])
                room[node] -= 1
                if not room[node]:
                    del room[node]
                self._start(title, node, nodes[node]["NodeManagerHostname"])

    def _start(self, title: str, node: str, host: str) -> None:
        model = self.models[title]
        if title not in self.packed:
            alone = replace(self.plan, training=[], evaluation=[], models=[model])
            self.packed[title] = ray.put(_packed(alone))
        self.used.add(node)
        options = self.cluster.options(model.recipe) | _on(node)
        actor: Any = (
            ray.remote(Worker).options(**options).remote(self.cluster.news, self.cluster.folder)
        )
        ready = actor.ready.remote(
            self.packed[title], _name(model.spec.model), model.digest, NUMERICS
        )
        self.busy[ready] = _Hired(actor, title, node, f"{host} ({node[:8]})")

    def _take(self, result: Any) -> None:
        """Take what a worker returns, and give it the next run."""
        worker = self.busy.pop(result)
        try:
            found = ray.get(result)
        except RayTaskError:
            raise  # not the node's doing
        except RayError as error:
            self._bury(worker, _cause(error))
            return
        if found.unfit:
            self._refuse(worker, found.unfit)
            return
        if worker.run is not None:
            self._finish(worker, worker.run, found)
        if self.waiting[worker.model]:
            self._give(worker, self.waiting[worker.model].popleft())
        else:
            ray.kill(worker.actor)

    def _give(self, worker: _Hired, run: Run) -> None:
        tuning = self.folder.tuning(run.id)
        sent = _read_files(tuning) if self.folder.has_tuning(run.id) else {}
        worker.run, worker.owed = run, cost(self.folder, run)
        worker.work, worker.trained = 0.0, 0
        self.busy[worker.actor.do.remote(run.id, sent)] = worker

    def _finish(self, worker: _Hired, run: Run, made: Made) -> None:
        """Put what a worker made in place."""
        tuned = self.folder.has_tuning(run.id)
        if tuned:
            # By name: the checksums come before the files that they list.
            for name, content in sorted(made.files.items()):
                with new_file(self.folder.tuning(run.id) / name) as scratch:
                    scratch.write_bytes(content)
        elif made.files:
            with new_folder(self.folder.tuning(run.id)) as scratch:
                _write_files(scratch, made.files)
        if made.failure:
            self._fail(run, made.failure)
            return
        self.folder.failure(run.id).unlink(missing_ok=True)
        trained = 0 if tuned or run.order is None else len(run.order)
        self.watch.worked(worker.owed - worker.work, trained - worker.trained)
        self.watch.run_done()

    def _bury(self, worker: _Hired, reason: str) -> None:
        """Go on after a worker or its node died."""
        ray.kill(worker.actor)  # if it is only out of reach, it must not go on either
        died = f"a worker died on node {worker.host}: {reason}"
        key = (worker.model, worker.node) if worker.run is None else worker.run.id
        self.deaths[key] += 1
        if self.deaths[key] < TRIES:
            self.watch.note(died if worker.run is None else f"{worker.run.title}: {died}")
            self._give_back(worker)
        elif worker.run is None:
            self._refuse(worker, f"{TRIES} workers died before a run; the last time {died}")
        else:
            reason = f"{TRIES} workers died over it; the last time {died}"
            self._fail(worker.run, f"{worker.run.title}: {reason}")

    def _refuse(self, worker: _Hired, reason: str) -> None:
        """Start no more workers for this model on this node."""
        ray.kill(worker.actor)
        self._give_back(worker)
        said = f"node {worker.host} cannot run {worker.model}: {reason}"
        if (worker.model, worker.node) not in self.refused:
            self.watch.note(said)
        self.refused[worker.model, worker.node] = said

    def _give_back(self, worker: _Hired) -> None:
        if worker.run is not None:
            self.watch.worked(-worker.work, -worker.trained)
            self.waiting[worker.model].appendleft(worker.run)

    def _give_up(self) -> None:
        """Let runs fail that no node of the cluster can do."""
        for title, runs in self.waiting.items():
            if not runs or any(worker.model == title for worker in self.busy.values()):
                continue
            model = self.models[title]
            reasons = [said for (name, _), said in self.refused.items() if name == title]
            if model.problem is not None:
                reasons = [str(model.problem)]
            asked = _amounts(self.cluster.asked(model.recipe))
            reason = "; ".join(reasons) or f"no node of the cluster is left that has {asked}"
            while runs:
                run = runs.popleft()
                self._fail(run, f"{run.title}: {reason}")

    def _let_go(self) -> None:
        """End workers that are still to start and for which no run waits any more."""
        for result, worker in list(self.busy.items()):
            if worker.run is None and not self.waiting[worker.model]:
                del self.busy[result]
                ray.kill(worker.actor)

    def _fail(self, run: Run, reason: str) -> None:
        write_failure(self.folder, run, reason)
        self.watch.failed(reason)

    def _hear(self) -> None:
        doing = {worker.run.id: worker for worker in self.busy.values() if worker.run}
        for run_id, kind, *values in ray.get(self.cluster.news.take.remote()):
            if kind == "worked":
                if run_id not in doing:
                    continue  # its result came first
                doing[run_id].work += values[0]
                doing[run_id].trained += values[1]
            _tell(self.watch, kind, values)

    def _dismiss(self) -> None:
        for worker in self.busy.values():
            ray.kill(worker.actor)
        clear = ray.remote(_clear)
        with contextlib.suppress(RayError):
            left = [
                clear.options(num_cpus=0, **_on(node)).remote(self.cluster.folder)
                for node in self.used & _nodes().keys()
            ]
            if left:
                ray.wait(left, num_returns=len(left), timeout=10)


def _cause(error: RayError) -> str:
    """Return what Ray says of a death, without the ids that it lists in indented lines."""
    lines = (line for line in str(error).splitlines() if line and not line[0].isspace())
    return " ".join(lines) or type(error).__name__


def _tell(watch: Watch, kind: str, values: Sequence[Any]) -> None:
    if kind == "warned":
        text, category = values
        warnings.warn(text, category, stacklevel=2)
    else:
        getattr(watch, kind)(*values)


# ---- Doing them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """What a worker returns.

    Attributes:
        files: of the run's folder, by name, those that are new or changed.
        failure: why the run failed.
        unfit: why this node cannot do runs of this model at all.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    failure: str = ""
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

    def ready(self, packed: bytes, model: str, digest: str, numerics: int) -> Made:
        """Make ready for the runs of a model. It is loaded for the first of them."""
        try:
            plan = pickle.loads(packed)
            here = replace(plan.models[0], folder=_home(model, digest, numerics))
        except Exception as error:  # whatever it is, another node may do better
            return Made(unfit=f"{type(error).__name__}: {error}")
        self.runs = {run.id: run for run in here.runs}
        self.work = ModelWork(plan, here, Folder(self.scratch), self.shared, self.watch)
        return Made()

    def do(self, run_id: str, sent: dict[str, bytes]) -> Made:
        """Do what one run lacks.

        Args:
            run_id: the run.
            sent: the files that there are of it, by name.
        """
        run, tuning = self.runs[run_id], Folder(self.scratch).tuning(run_id)
        self.watch.run_id, self.watch.failure = run_id, ""
        try:
            _write_files(tuning, sent)
            self.work.do(run)
            found = _read_files(tuning)
        except OSError as error:  # this node's disk
            return Made(unfit=str(error))
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
        if self.work.engine is None:
            return Made(unfit=self.watch.failure.removeprefix(f"{run.title}: "))
        files = {name: content for name, content in found.items() if sent.get(name) != content}
        return Made(files, self.watch.failure)


def _do_task(packed: bytes, model: str, digest: str, numerics: int, news: Any) -> pa.Table | str:
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


class _News:
    """A Ray actor that workers tell how it goes."""

    def __init__(self) -> None:
        self.items: list[tuple[Any, ...]] = []

    def tell(self, *item: Any) -> None:
        self.items.append(item)

    def take(self) -> list[tuple[Any, ...]]:
        """Return what was told since the last time: run id, method of a `Watch`, arguments."""
        items, self.items = self.items, []
        return items


class _Teller(Watch):
    """Tells the news what a worker has to say, and how far it is every now and then."""

    def __init__(self, news: Any) -> None:
        self.news, self.run_id, self.failure = news, "", ""
        self.work, self.trained, self.told = 0.0, 0, 0.0
        # What is printed here is seen by nobody.
        warnings.showwarning = lambda message, category, *_, **__: self._tell(
            "warned", str(message), category
        )

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

    def say(self, text: str) -> None:
        self.work, self.trained = 0.0, 0  # of a run that is over: its result says it
        self._tell("say", text)

    def worked(self, work: float, trained: int = 0) -> None:
        self.work += work
        self.trained += trained
        if self._is_time():
            self._tell("worked", self.work, self.trained)
            self.work, self.trained = 0.0, 0

    def failed(self, text: str) -> None:
        self.failure = text


# ---- Files ---------------------------------------------------------------------------------------


class _Packer(pickle.Pickler):
    """Packs questions with their content; their own way may be to name a file of this machine."""

    def reducer_override(self, thing: Any) -> Any:
        from datasets import Dataset

        if isinstance(thing, Dataset):
            return Dataset, (thing.with_format("arrow")[:],)
        return NotImplemented


def _packed(thing: Any) -> bytes:
    out = io.BytesIO()
    _Packer(out, protocol=pickle.HIGHEST_PROTOCOL).dump(thing)
    return out.getvalue()


def _read_files(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder by their names in it."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
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


def _clear(folder: str) -> None:
    """Remove a folder of this node as soon as its workers are gone."""
    deadline = time.monotonic() + 5
    while not _remove_unused(Path(tempfile.gettempdir()) / folder):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
