"""Doing what a study lacks on a Ray cluster.

The process that was started plans the study, hands out its runs and alone writes its folder;
workers send back what they made as bytes, so that no disk need be shared. Workers are Ray actors,
each with one model in memory (`lessonplan.study.ray_worker`).

Every node needs the same lessonplan, and the study's models under the names that the study file
gives them: presets, hub ids, or folders and GGUF files at the same path. A node that lacks one does
no runs of it; if none is left, these runs fail, and the reason names the node.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from lessonplan.errors import InputError, first_line
from lessonplan.models import NUMERICS
from lessonplan.models.presets import PRESETS
from lessonplan.study.config import Study, model_recipe
from lessonplan.study.files import new_file, new_folder
from lessonplan.study.model_labels import Task
from lessonplan.study.plan import Plan, Run
from lessonplan.study.ray_worker import (
    PAUSE,
    PREFIX,
    Made,
    News,
    Worker,
    clear,
    do_task,
    packed,
    read_files,
    write_files,
)
from lessonplan.study.store import Folder
from lessonplan.study.watch import Watch
from lessonplan.study.work import cost, lockstep_groups, write_failure
from lessonplan.training.recipe import Recipe

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise InputError("--ray needs Ray: pip install 'lessonplan[ray]'.") from None

# So many workers may die over a run before it is given up.
TRIES = 3
# Bytes of memory that a Ray of our own keeps for results on their way; what is more goes to disk.
STORE = 256 * 2**20


# ---- The cluster ---------------------------------------------------------------------------------


@contextlib.contextmanager
def connected(address: str, study: Study) -> Iterator[Cluster]:
    """Yield a Ray cluster that has room for the runs of a study.

    Args:
        address: as `ray.init` takes it; "local" starts a Ray on this machine and ends it.

    Raises:
        InputError: no cluster can be reached there, or no node offers what a worker takes.
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
        self.news: Any = ray.remote(News).options(num_cpus=0, **_on(here)).remote()

    def asked(self, recipe: Recipe) -> dict[str, float]:
        """Return what a worker takes of a node, as Ray calls it (memory in bytes)."""
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
        if recipe.device.startswith("cuda:"):
            raise InputError(
                f"device: {recipe.device} cannot be chosen with --ray, which gives each worker a "
                "GPU of its own; take device: cuda."
            )
        asked, nodes = self.asked(recipe), _nodes()
        if not any(_room(node, asked) for node in nodes.values()):
            raise InputError(
                f"resources: a worker takes {_amounts(asked)}, and no node of the Ray cluster has "
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
                ray.remote(**options)(do_task).remote(
                    packed(task.call), _name(task.model), task.digest, NUMERICS, self.news
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
    """Return how many workers a node that does nothing else has room for."""
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
        runs: what it does, in lock-step if several; none until it is ready.
        work, trained: so much of them the watch was told.
    """

    actor: Any
    model: str
    node: str
    host: str
    runs: Sequence[Run] = ()
    work: float = 0.0
    trained: int = 0


class _Shift:
    """The runs that a study lacks, and the workers that do them."""

    def __init__(
        self, cluster: Cluster, plan: Plan, lacking: Sequence[Run], folder: Folder, watch: Watch
    ) -> None:
        self.cluster, self.plan, self.folder, self.watch = cluster, plan, folder, watch
        self.models = {model.spec.title: model for model in plan.models}
        self.waiting: dict[str, deque[Sequence[Run]]] = {title: deque() for title in self.models}
        # A run that two models share goes to one of them.
        places = {run.id: model.spec.title for model in plan.models for run in model.runs}
        for group in lockstep_groups(folder, plan, lacking):
            self.waiting[places[group[0].id]].append(group)
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
                    self._hear()
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
        for title, groups in self.waiting.items():
            if self.models[title].problem is not None:
                continue
            own = [worker for worker in self.busy.values() if worker.model == title]
            asked = self.cluster.asked(self.models[title].recipe)
            room = {id: _room(node, asked) for id, node in nodes.items()}
            for worker in own:
                room[worker.node] = room.get(worker.node, 0) - 1
            room = {id: n for id, n in room.items() if n > 0 and (title, id) not in self.refused}
            for _ in range(len(groups) - sum(not worker.runs for worker in own)):
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
            self.packed[title] = ray.put(packed(alone))
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
        if found.apart:
            self._give_back(worker, [[run] for run in worker.runs])
        elif worker.runs:
            self._finish(worker, found.made)
        if self.waiting[worker.model]:
            self._give(worker, self.waiting[worker.model].popleft())
        else:
            ray.kill(worker.actor)

    def _give(self, worker: _Hired, runs: Sequence[Run]) -> None:
        there = self.folder.has_tuning
        sent = {r.id: read_files(self.folder.tuning(r.id)) if there(r.id) else {} for r in runs}
        worker.runs, worker.work, worker.trained = runs, 0.0, 0
        self.busy[worker.actor.do.remote(sent)] = worker

    def _finish(self, worker: _Hired, made: dict[str, Made]) -> None:
        """Put what a worker made in place."""
        work, trained = -worker.work, -worker.trained
        for run in worker.runs:
            needed = cost(self.folder, run)
            tuned = self.folder.has_tuning(run.id)
            self._put(run, made[run.id].files, tuned)
            if made[run.id].failure:
                self._fail(run, made[run.id].failure)
                continue
            self.folder.failure(run.id).unlink(missing_ok=True)
            work += needed
            trained += 0 if tuned or run.order is None else len(run.order)
            self.watch.run_done()
        if not all(one.failure for one in made.values()):
            self.watch.worked(work, trained)

    def _put(self, run: Run, files: dict[str, bytes], tuned: bool) -> None:
        if tuned:
            # By name: the checksums come before the files that they list.
            for name, content in sorted(files.items()):
                with new_file(self.folder.tuning(run.id) / name) as scratch:
                    scratch.write_bytes(content)
        elif files:
            with new_folder(self.folder.tuning(run.id)) as scratch:
                write_files(scratch, files)

    def _bury(self, worker: _Hired, reason: str) -> None:
        """Go on after a worker or its node died."""
        ray.kill(worker.actor)  # if it is only out of reach, it must not go on either
        died = f"a worker died on node {worker.host}: {reason}"
        keys: list[Any] = [run.id for run in worker.runs] or [(worker.model, worker.node)]
        self.deaths.update(keys)
        if len(worker.runs) > 1:
            # It may be one of them alone, or the memory that they take together.
            self.watch.note(f"{worker.runs[0].title} and the runs beside it go one by one: {died}")
            self._give_back(worker, [[run] for run in worker.runs])
        elif self.deaths[keys[0]] < TRIES:
            self.watch.note(f"{worker.runs[0].title}: {died}" if worker.runs else died)
            self._give_back(worker, [worker.runs])
        elif not worker.runs:
            self._refuse(worker, f"{TRIES} workers died before a run; the last time {died}")
        else:
            reason = f"{TRIES} workers died over it; the last time {died}"
            self._fail(worker.runs[0], f"{worker.runs[0].title}: {reason}")

    def _refuse(self, worker: _Hired, reason: str) -> None:
        """Start no more workers for this model on this node."""
        ray.kill(worker.actor)
        self._give_back(worker, [worker.runs])
        said = f"node {worker.host} cannot run {worker.model}: {reason}"
        if (worker.model, worker.node) not in self.refused:
            self.watch.note(said)
        self.refused[worker.model, worker.node] = said

    def _give_back(self, worker: _Hired, groups: Sequence[Sequence[Run]]) -> None:
        """Let what a worker had to do wait again, together as said."""
        if worker.runs:
            self.watch.worked(-worker.work, -worker.trained)
            self.waiting[worker.model].extendleft(reversed(groups))

    def _give_up(self) -> None:
        """Let runs fail that no node of the cluster can do."""
        for title, groups in self.waiting.items():
            if not groups or any(worker.model == title for worker in self.busy.values()):
                continue
            model = self.models[title]
            reasons = [said for (name, _), said in self.refused.items() if name == title]
            if model.problem is not None:
                reasons = [str(model.problem)]
            asked = _amounts(self.cluster.asked(model.recipe))
            reason = "; ".join(reasons) or f"no node of the cluster is left that has {asked}"
            while groups:
                for run in groups.popleft():
                    self._fail(run, f"{run.title}: {reason}")

    def _let_go(self) -> None:
        """End workers that are still to start and for which no run waits any more."""
        for result, worker in list(self.busy.items()):
            if not worker.runs and not self.waiting[worker.model]:
                del self.busy[result]
                ray.kill(worker.actor)

    def _fail(self, run: Run, reason: str) -> None:
        write_failure(self.folder, run, reason)
        self.watch.failed(reason)

    def _hear(self) -> None:
        doing = {worker.runs[0].id: worker for worker in self.busy.values() if worker.runs}
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
        clearing = ray.remote(clear)
        with contextlib.suppress(RayError):
            left = [
                clearing.options(num_cpus=0, **_on(node)).remote(self.cluster.folder)
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
