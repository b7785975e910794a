"""Running a study on a Ray cluster: the same results, and what dies is made good."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lessonplan.errors import InputError
from lessonplan.study import Study, run_study
from lessonplan.study.plan import Plan
from lessonplan.study.store import Folder
from lessonplan.study.study_file import dump_study
from tests.study.ears import Ears

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'lessonplan[ray]'")
slow = pytest.mark.slow  # a Ray and its workers take many seconds to start

Make = Callable[..., Study]
Finished = tuple[Path, Plan]
# Long enough to be disturbed in the middle.
LONG: dict[str, Any] = {
    "strategies": ["random", "blocked"],
    "seeds": 1,
    "recipe": {
        "threads": 1,
        "learning_rate": 1e-3,
        "epochs": 5,
        "adapter": {"rank": 4, "layers": 2},
    },
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node with one CPU; tests may add others, and remove them."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    started = Cluster(
        initialize_head=True, head_node_args=node(num_cpus=1, include_dashboard=False)
    )
    yield started
    started.shutdown()


def node(**settings: Any) -> dict[str, Any]:
    return {"object_store_memory": 100 * 2**20, **settings}


def results(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all predictions, orders and adapters."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.glob("tunings/**/*")
        if file.suffix in (".parquet", ".safetensors")
    }


def at_work(node: Any) -> list[int]:
    """Return the processes of a node that do a run."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            named = line.read_text().startswith("ray::Worker.do")
            parent = int((line.parent / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if named and parent == raylet:
            found.append(int(line.parent.name))
    return found


def lost_runs(ears: Ears) -> list[str]:
    """Return the runs whose worker died and that were given to another."""
    found = [re.match(r"(tiny, .*): a worker died on node ", note) for note in ears.notes]
    return [note[1] for note in found if note]


# ---- The same results ----------------------------------------------------------------------------


@slow
def test_the_same_bytes_as_in_this_process(
    cluster: Any,
    make: Make,
    finished: Finished,
    data: Path,
    with_more: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lessonplan.study import on_ray

    monkeypatch.setattr(on_ray, "PREFIX", "lessonplan-ray-tested-")
    folder, ears = tmp_path / "s", Ears()
    run_study(make(), folder, ears, ray=cluster.address)
    assert results(folder) == results(finished[0])
    assert (ears.done, ears.trained) == (7, 6 * 48)
    assert abs(ears.work) < 1e-6
    assert ears.said.count("loading tiny") == 1  # one worker, which keeps it
    assert not list(folder.rglob(".writing-*"))
    assert not list(Path(tempfile.gettempdir()).glob("lessonplan-ray-tested-*"))
    assert not ray.is_initialized()

    # A set that is added is scored from the adapters, which only this process's disk has.
    before = {file: file.stat().st_mtime_ns for file in folder.glob("tunings/*/tuning.json")}
    more = [str(data / "test.jsonl"), str(data / "more.jsonl")]
    ears = Ears()
    run_study(make(evaluation=more), folder, ears, ray=cluster.address)
    assert ears.trained == 0
    assert abs(ears.work) < 1e-6
    assert before == {file: file.stat().st_mtime_ns for file in before}
    scored, whole = results(folder), results(with_more)
    final = {name for name in whole if name in scored}
    assert len(final) == len(scored)
    assert all(scored[name] == whole[name] for name in final)
    # Started again in this process, it finds its checksums right and nothing to do.
    ears = Ears()
    run_study(make(evaluation=more), folder, ears)
    assert ears.done == 0


@slow
def test_labels_are_made_by_workers(
    cluster: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lessonplan.study import model_labels
    from lessonplan.study.plan import make_plan

    sources = {
        "llm": {"measure": "probability", "allow_uninformative": True},
        "tuned": {"measure": "confidence", "allow_uninformative": True},
    }
    study = make(strategies=["random", "curriculum"], seeds=1, labels={"difficulty": sources})
    here = make_plan(study, tmp_path / "here")

    def not_here(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded in this process")

    monkeypatch.setattr(model_labels, "load", not_here)
    monkeypatch.setattr(model_labels, "training_dynamics", not_here)
    ears = Ears()
    there = run_study(study, tmp_path / "s", ears, ray=cluster.address)
    assert [run.id for run in there.runs] == [run.id for run in here.runs]
    tables = {file.name: pq.read_table(file) for file in (tmp_path / "here").iterdir()}
    assert len(tables) == 2
    for name, table in tables.items():
        assert pq.read_table(tmp_path / "s" / "labels" / name).equals(table)
    assert {"difficulty by tiny", "fine-tuning tiny once, to see what it finds hard"} == set(
        ears.progressed
    )
    assert ears.failures == []


@slow
def test_runs_in_lockstep(cluster: Any, make: Make, tmp_path: Path) -> None:
    here, ears = tmp_path / "here", Ears()
    run_study(make(lockstep=6), here)
    run_study(make(lockstep=6), tmp_path / "s", ears, ray=cluster.address)
    assert results(tmp_path / "s") == results(here)
    assert "tiny, random, seed 0, in lock-step with 5 more" in ears.said
    assert (ears.done, ears.trained) == (7, 6 * 48)
    assert abs(ears.work) < 1e-6
    assert ears.notes == []


# ---- What dies -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(make: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "s"
    run_study(make(**LONG), folder)
    return results(folder)


@slow
def test_a_node_that_dies_costs_its_run_alone(
    cluster: Any,
    make: Make,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    other = cluster.add_node(**node(num_cpus=1))
    shared, stopped = Path(tempfile.gettempdir()), list[int]()

    def remove(_: str) -> None:
        for worker in [] if stopped else at_work(other):
            if list(shared.glob(f"*/worker-{worker}/tunings/.writing-*")):
                stopped.append(worker)
                os.kill(worker, signal.SIGSTOP)  # it stays in the middle of its run
                cluster.remove_node(other, allow_graceful=False)
                os.kill(worker, signal.SIGKILL)  # and dies with its node

    ears = Ears(remove)
    try:
        run_study(make(**LONG), tmp_path / "s", ears, ray=cluster.address)
    finally:
        for process in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert len(stopped) == 1
    assert results(tmp_path / "s") == undisturbed
    assert ears.failures == []
    (lost,) = lost_runs(ears)
    runs = [text for text in ears.said if text.startswith("tiny, ")]
    assert sorted(runs) == sorted([*set(runs), lost])
    assert len(set(runs)) == 3
    assert capfd.readouterr().out == ""  # Ray's daemons have much to say
    assert (ears.done, ears.trained) == (3, 2 * 5 * 48)
    assert abs(ears.work) < 1e-6


@slow
def test_a_run_that_its_workers_die_over_is_given_up(
    cluster: Any, make: Make, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    killed: list[str] = []

    def kill(text: str) -> None:
        if text == "tiny, random, seed 0":
            killed.append(text)
            (worker,) = at_work(cluster.head_node)
            os.kill(worker, signal.SIGKILL)

    folder, ears = tmp_path / "s", Ears(kill)
    plan = run_study(make(**LONG), folder, ears, ray=cluster.address)
    assert len(killed) == 3
    (reason,) = ears.failures
    assert reason.startswith("tiny, random, seed 0: 3 workers died over it; the last")
    (failed,) = (run.id for run in plan.runs if run.arm == "random")
    assert json.loads(Folder(folder).failure(failed).read_text())["reason"] == reason
    assert lost_runs(ears) == ["tiny, random, seed 0"] * 2
    assert ears.done == 2
    assert results(folder).items() < undisturbed.items()
    run_study(make(**LONG), folder)
    assert results(folder) == undisturbed
    assert not Folder(folder).failure(failed).exists()


@slow
def test_runs_whose_worker_dies_go_one_by_one(
    cluster: Any, make: Make, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    def kill(text: str) -> None:
        if "in lock-step" in text:
            (worker,) = at_work(cluster.head_node)
            os.kill(worker, signal.SIGKILL)

    ears = Ears(kill)
    run_study(make(**LONG, lockstep=2), tmp_path / "s", ears, ray=cluster.address)
    assert results(tmp_path / "s") == undisturbed
    (note,) = ears.notes
    assert note.startswith("tiny, random, seed 0 and the runs beside it go one by one: a worker")
    assert (ears.done, ears.failures) == (3, [])
    assert abs(ears.work) < 1e-6


@slow
@pytest.mark.parametrize(
    "ending", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_stop_and_start_again_without_ray(
    make: Make, undisturbed: dict[str, bytes], tmp_path: Path, ending: signal.Signals
) -> None:
    file, folder = tmp_path / "s.yaml", tmp_path / "s"
    file.write_text(dump_study(make(**LONG, resources={"cpus": 0.5})))
    process = subprocess.Popen(
        [sys.executable, "-m", "lessonplan", "study", file, "-o", folder, "--ray", "local"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not list(folder.glob("tunings/*/tuning.json")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, ending)  # as a terminal does with Ctrl-C
        out, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[ending]
    assert out == ""
    lines = said.splitlines()
    if ending == signal.SIGINT:
        assert lines.pop() == "stopped; what was finished is kept, and the same command goes on."
    assert lines[0] == "3 runs, 0 of them done"
    assert all(" runs" in line for line in lines if line)  # and nothing of Ray's
    assert results(folder).items() < undisturbed.items()
    run_study(make(**LONG), folder)
    assert results(folder) == undisturbed


# ---- What fails ----------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("lockstep", [1, 2])
def test_a_failing_run_is_written_down(
    cluster: Any, make: Make, tiny_llama: Path, tmp_path: Path, lockstep: int
) -> None:
    models = [
        {"model": str(tiny_llama), "name": "wild", "recipe": {"learning_rate": 1e30}},
        {"model": str(tiny_llama), "name": "tiny"},
        {"model": str(tmp_path / "nowhere"), "name": "none"},
    ]
    study = make(models=models, strategies=["random"], seeds=lockstep, lockstep=lockstep)
    ears, alone = Ears(), Ears()
    run_study(study, tmp_path / "s", ears, ray=cluster.address)
    run_study(study, tmp_path / "alone", alone)
    assert ears.done == alone.done == 1 + lockstep  # two models share the untuned run
    assert ears.notes == alone.notes
    assert len(ears.failures) == 2 * lockstep
    assert sorted(ears.failures) == sorted(alone.failures)
    assert results(tmp_path / "s") == results(tmp_path / "alone")

    def written(folder: Path) -> dict[str, str]:
        return {file.name: file.read_text() for file in (folder / "failures").iterdir()}

    assert written(tmp_path / "s") == written(tmp_path / "alone")


@slow
@pytest.mark.parametrize("change", ["gone", "another"])
def test_a_model_that_a_node_has_not(
    cluster: Any, make: Make, tiny_llama: Path, tmp_path: Path, change: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama, copy)

    class Meddler(Ears):
        def begin(self, runs: int, done: int, work: float) -> None:
            if change == "gone":
                shutil.rmtree(copy)
            else:
                (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")

    study = make(models=[{"model": str(copy), "name": "moved"}], strategies=["random"], seeds=1)
    ears = Meddler()
    run_study(study, tmp_path / "s", ears, ray=cluster.address)
    said = {"gone": f"There is no model '{copy}'", "another": "holds another model"}[change]
    assert len(ears.failures) == 2
    assert all(said in text for text in ears.failures)
    assert all(f"node {socket.gethostname()} " in text for text in ears.failures)
    assert ears.notes == [ears.failures[0].partition(": ")[2]]
    assert results(tmp_path / "s") == {}


@slow
def test_more_than_any_node_has(cluster: Any, make: Make, tmp_path: Path) -> None:
    resources = {"cpus": 64, "gpus": 0.5, "memory": "4 GiB"}
    with pytest.raises(InputError) as caught:
        run_study(make(resources=resources), tmp_path / "s", ray=cluster.address)
    said = str(caught.value)
    assert "a worker takes 64 CPUs, 0.5 GPUs, 4 GiB of memory, and no node" in said
    assert f"{socket.gethostname()}: 1 CPU, " in said
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "said"), [("127.0.0.1:1", "refused"), ("nonsense", "Invalid address")]
)
def test_no_cluster_there(make: Make, tmp_path: Path, address: str, said: str) -> None:
    with pytest.raises(InputError, match=f"No Ray cluster can be reached at {address} .*{said}"):
        run_study(make(), tmp_path / "s", ray=address)


def test_without_ray(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lessonplan.study.on_ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'lessonplan\[ray\]'"):
        run_study(make(), tmp_path / "s", ray="local")


def test_ray_is_imported_only_when_asked_for() -> None:
    code = "import sys, lessonplan.cli; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "resources", [{"gpus": 1.5}, {"cpus": 0}, {"memory": "much"}, {"memory": -1}, {"disks": 1}]
)
def test_resources_that_cannot_be(make: Make, resources: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"resources.{next(iter(resources))}"):
        make(resources=resources)


def test_resources_are_of_no_run(make: Make, finished: Finished) -> None:
    from lessonplan.study.plan import make_plan

    study = make(resources={"cpus": 2, "gpus": 0.5, "memory": "4 GiB"})
    assert study.resources.memory == 4 * 2**30
    assert [run.id for run in make_plan(study).runs] == [run.id for run in finished[1].runs]


# ---- Parts ---------------------------------------------------------------------------------------


def test_a_node_folder_is_removed_by_the_last(tmp_path: Path) -> None:
    from lessonplan.study.ray_worker import _enter, _remove_unused

    shared = tmp_path / "shared"
    one, other = _enter(shared), _enter(shared)
    (shared / "states").write_bytes(b"x")
    assert not _remove_unused(shared)
    os.close(one)
    assert not _remove_unused(shared)
    os.close(other)  # as the kernel does when a process is killed
    assert _remove_unused(shared)
    assert not shared.exists()
    assert _remove_unused(shared)


def test_questions_travel_with_their_content(tmp_path: Path) -> None:
    import pickle

    from datasets import Dataset

    from lessonplan.study.ray_worker import packed

    kept = tmp_path / "kept"
    Dataset.from_dict({"id": ["a", "b", "c"]}).save_to_disk(kept)
    packed = packed(Dataset.load_from_disk(kept).select([2, 0]))
    shutil.rmtree(kept)
    assert pickle.loads(packed)["id"][:] == ["c", "a"]
