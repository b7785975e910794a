"""Running a study: what is done, done again, and left alone; and what survives a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from lessonplan.errors import InputError
from lessonplan.progress import StudyProgress
from lessonplan.study import Study, read_record, run_study
from lessonplan.study import run as run_module
from lessonplan.study.config import dump_study
from lessonplan.study.plan import Plan, make_plan
from lessonplan.study.status import status_table
from lessonplan.study.store import Folder, begin, claim, clear
from lessonplan.study.work import ModelWork
from tests.study.ears import Ears, session_members

Make = Callable[..., Study]
Contents = Callable[[Path], dict[str, str]]
Finished = tuple[Path, Plan]


def times(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_mtime_ns
        for file in (folder / "tunings").rglob("*")
        if file.is_file()
    }


def tuning_times(folder: Path) -> dict[str, int]:
    return {name: at for name, at in times(folder).items() if name.endswith("tuning.json")}


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".writing-*")) + list(folder.rglob(".holder"))


def test_what_lies_in_a_finished_folder(finished: Finished) -> None:
    folder, plan = finished
    names = {p.name for p in folder.iterdir()} - {".lock"}
    assert names == {"study.yaml", "plan.json", "data", "tunings"}
    assert {p.name for p in (folder / "tunings").iterdir()} == {run.id for run in plan.runs}
    for run in plan.runs:
        here = folder / "tunings" / run.id
        tuned = {"adapter", "order.parquet"} if run.order is not None else set()
        assert {p.name for p in here.iterdir()} == {
            "tuning.json",
            "SHA256SUMS",
            "evaluations",
        } | tuned
        assert {p.stem for p in (here / "evaluations").iterdir()} == {e.id for e in run.evaluations}
        if run.order is not None:
            ids = plan.training[0].questions["id"][:]
            shown = pq.read_table(here / "order.parquet")["id"].to_pylist()
            assert shown == [ids[i] for i in run.order]
            written = json.loads((here / "tuning.json").read_text())
            assert len(written["losses"]) == 6
            assert written["shortcuts"]["kept_layers"] == 2
    assert not leftovers(folder)


def test_a_second_start_does_nothing(make: Make, copied: Path) -> None:
    before = times(copied)
    ears = Ears()
    run_study(make(), copied, ears)
    assert times(copied) == before
    assert ears.began == (7, 7)
    assert ears.work == 0
    assert ears.done == 0
    assert not any("loading" in text for text in ears.said)


def test_a_deleted_tuning_alone_is_redone(make: Make, copied: Path, contents: Contents) -> None:
    whole, before = contents(copied), times(copied)
    gone = json.loads((copied / "plan.json").read_text())["runs"][3]["id"]
    shutil.rmtree(copied / "tunings" / gone)
    ears = Ears()
    run_study(make(), copied, ears)
    assert ears.began == (7, 6)
    assert ears.done == 1
    assert ears.trained == 48
    assert abs(ears.work) < 1e-9
    assert contents(copied) == whole
    after = times(copied)
    assert {name for name in after if after[name] != before[name]} == {
        name for name in after if name.startswith(f"tunings/{gone}/")
    }


def test_a_run_without_its_record_is_redone(make: Make, copied: Path, contents: Contents) -> None:
    whole = contents(copied)
    gone = json.loads((copied / "plan.json").read_text())["runs"][2]["id"]
    (copied / "tunings" / gone / "tuning.json").unlink()
    (copied / "tunings" / gone / "evaluations" / "stale.parquet").write_text("")
    run_study(make(), copied)
    assert contents(copied) == whole


def test_a_deleted_evaluation_is_scored_from_the_adapter(
    make: Make, copied: Path, contents: Contents
) -> None:
    whole, before = contents(copied), tuning_times(copied)
    for run in json.loads((copied / "plan.json").read_text())["runs"]:
        for evaluation in run["evaluations"]:
            if evaluation["kind"] == "final":
                folder = copied / "tunings" / run["id"] / "evaluations"
                (folder / f"{evaluation['id']}.parquet").unlink()
    run_study(make(), copied)
    assert contents(copied) == whole
    assert tuning_times(copied) == before


def finals(folder: Path) -> dict[tuple[str, int, str], list[Any]]:
    found = {}
    for run in json.loads((folder / "plan.json").read_text())["runs"]:
        for e in run["evaluations"]:
            if e["kind"] == "final":
                file = folder / "tunings" / run["id"] / "evaluations" / f"{e['id']}.parquet"
                found[run["arm"], run["seed"], e["of"]] = file.read_bytes()
    return found


def test_a_new_evaluation_set_tunes_nothing(
    make: Make, copied: Path, data: Path, with_more: Path
) -> None:
    before = tuning_times(copied)
    ears = Ears()
    study = make(evaluation=[str(data / "test.jsonl"), str(data / "more.jsonl")])
    run_study(study, copied, ears)
    assert tuning_times(copied) == before
    assert ears.trained == 0
    assert finals(copied) == finals(with_more)
    record = read_record(copied)
    assert [o.evaluation for o in record.outcomes] == ["test", "more"]
    assert record.failures == []
    assert str(status_table(copied)[0].title) == "tiny study: 6 of 6 runs done"
    # What could be had is had: nothing is tried again.
    run_study(study, copied, ears)
    assert ears.began == (7, 7)


def test_a_new_primary_score_tunes_nothing(
    make: Make, copied: Path, contents: Contents, tmp_path: Path
) -> None:
    before, old = tuning_times(copied), contents(copied)
    study = make(scoring={"score": "sum"}, seeds=1)
    run_study(study, copied)
    assert tuning_times(copied) == before
    assert old.items() <= contents(copied).items()
    run_study(study, tmp_path / "fresh")
    assert finals(copied) == finals(tmp_path / "fresh")


def test_adapters_are_kept_as_asked(
    make: Make, finished: Finished, contents: Contents, data: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"seeds": 1, "strategies": ["random"]}
    kept, none = tmp_path / "all", tmp_path / "none"
    run_study(make(keep_adapters="all", **changes), kept)
    (run,) = [run for run in (kept / "tunings").iterdir() if (run / "adapter").is_dir()]
    assert {p.name for p in run.iterdir() if p.is_dir()} == {
        "adapter",
        "adapter-24",
        "evaluations",
    }
    same = contents(finished[0])
    for name, digest in contents(kept).items():
        assert "adapter-24" in name or same[name] == digest
    # With all adapters, the curve of a new set can be had as well.
    more = [str(data / "test.jsonl"), str(data / "more.jsonl")]
    run_study(make(keep_adapters="all", evaluation=more, **changes), kept)
    assert [len(o.curves) for o in read_record(kept).outcomes] == [1, 1]

    run_study(make(keep_adapters="none", **changes), none)
    assert not list(none.rglob("adapter*"))
    assert finals(none).items() <= finals(finished[0]).items()
    ears = Ears()
    run_study(make(keep_adapters="none", evaluation=more, **changes), none, ears)
    assert len(ears.failures) == 1
    assert "keep_adapters: none" in ears.failures[0]
    record = read_record(none)
    assert record.runs_done == 0
    assert any("keep_adapters: none" in text for text in record.failures)


def test_two_arms_of_one_order_share_a_run(make: Make, tmp_path: Path) -> None:
    arms = ["random", {"strategy": "random", "name": "again"}]
    plan = run_study(make(strategies=arms, seeds=1), tmp_path / "s")
    assert len({run.id for run in plan.runs}) == 2
    (outcome,) = read_record(tmp_path / "s").outcomes
    assert (outcome.arms["random"] == outcome.arms["again"]).all()


def test_folds_predict_every_question(make: Make, data: Path, tmp_path: Path) -> None:
    training = [{"data": str(data / "train.jsonl"), "folds": 5}]
    recipe = {"threads": 1, "batch_size": 1, "adapter": {"rank": 2, "layers": 1}}
    study = make(
        training=training,
        evaluation=[],
        strategies=["random"],
        seeds=1,
        recipe=recipe,
        checkpoints={"at": [0.25, 0.5, 0.99], "questions": 10},
    )
    run_study(study, tmp_path / "s")
    record = read_record(tmp_path / "s")
    (outcome,) = record.outcomes
    assert (outcome.evaluation, outcome.folds) == ("train (held out)", 5)
    for values in [outcome.untuned, *outcome.arms.values()]:
        assert values is not None
        assert set(values.ravel().tolist()) == {0.0, 1.0}
    # Folds of 38 and 39 questions reach their half at 19 and 20: one point of the curve.
    curve = outcome.curves["random"]
    assert curve.seen.tolist() == [0, 10, 19, 39]
    assert curve.values.shape[2] == 10
    assert np.isfinite(curve.values).all()


# ---- Failures ------------------------------------------------------------------------------------

ONE_FAILS: dict[str, Any] = {"seeds": 1, "strategies": ["random", "blocked"]}


@pytest.mark.parametrize("batch", [8, 48], ids=["loss", "last step"])
def test_a_loss_that_is_no_number(
    make: Make, settings: dict[str, Any], tiny_llama: Path, tmp_path: Path, batch: int
) -> None:
    # With one step in all, the loss never shows that the weights are ruined.
    wild = {"learning_rate": 1e30, "batch_size": batch}
    models = [
        {"model": str(tiny_llama), "name": "wild", "recipe": wild},
        {"model": str(tiny_llama), "name": "tiny"},
    ]
    ears = Ears()
    plan = run_study(make(models=models, **ONE_FAILS), tmp_path / "s", ears)
    assert len(ears.failures) == 2
    assert all(text.startswith("wild, ") for text in ears.failures)
    assert all("learning_rate" in text for text in ears.failures)
    failed = {run.id for run in plan.runs if run.model == "wild" and run.order is not None}
    assert {p.stem for p in (tmp_path / "s" / "failures").iterdir()} == failed
    done = {p.name for p in (tmp_path / "s" / "tunings").iterdir()}
    assert done == {run.id for run in plan.runs} - failed
    assert not leftovers(tmp_path / "s")
    record = read_record(tmp_path / "s")
    assert sorted(record.failures) == sorted(ears.failures)
    assert (record.runs_done, record.runs_planned) == (2, 4)
    table, others = status_table(tmp_path / "s")
    assert str(table.title) == "tiny study: 2 of 4 runs done"
    assert [text.split(";")[0] for text in others] == ["2 runs failed"]


def test_a_failed_run_leaves_no_trace_in_the_next(
    make: Make,
    finished: Finished,
    contents: Contents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lessonplan.training import tune as tune_module

    calls = 0
    sound = tune_module.question_losses

    def out_of_memory(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            loss = sound(*args)
            loss.sum().backward()  # gradients that no step takes up
            raise RuntimeError("out of memory")
        return sound(*args)

    monkeypatch.setattr(tune_module, "question_losses", out_of_memory)
    ears = Ears()
    run_study(make(), tmp_path / "s", ears)
    assert ears.failures == ["tiny, random, seed 0: RuntimeError: out of memory"]
    assert len(list((tmp_path / "s" / "failures").iterdir())) == 1
    assert contents(tmp_path / "s").items() < contents(finished[0]).items()
    monkeypatch.undo()
    again = Ears()
    run_study(make(), tmp_path / "s", again)
    assert again.began == (7, 6)
    assert again.failures == []
    assert not list((tmp_path / "s" / "failures").iterdir())
    assert contents(tmp_path / "s") == contents(finished[0])


class FakeProcess:
    def __init__(self, exitcode: int | None) -> None:
        self.exitcode = exitcode


@pytest.mark.parametrize(("codes", "said"), [((None, -9), "status -9"), ((0, 0), "status 0")])
def test_a_worker_that_is_gone_is_noticed(codes: tuple[int | None, ...], said: str) -> None:
    import queue

    class Silence(queue.Queue):  # type: ignore[type-arg]
        def get(self, *_: Any, **__: Any) -> Any:
            raise queue.Empty

    kind, text = run_module._next_news(Silence(), [FakeProcess(code) for code in codes])
    assert kind == "lost"
    assert said in text


# ---- Folders -------------------------------------------------------------------------------------


def test_another_study_in_the_folder(make: Make, copied: Path) -> None:
    before = times(copied)
    with pytest.raises(InputError, match=r"holds another study \('tiny study', not 'other'\)"):
        run_study(make(name="other"), copied)
    assert times(copied) == before
    assert "tiny study" in (copied / "study.yaml").read_text()
    (copied / "study.yaml").write_text("name: [\n")
    with pytest.raises(InputError, match=r"study\.yaml cannot be read"):
        run_study(make(), copied)


def test_a_folder_of_other_things(make: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(InputError, match="is not empty and holds no study"):
        run_study(make(), tmp_path)
    with pytest.raises(InputError, match="cannot be written to"):
        run_study(make(), tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "do not touch"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(make: Make, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        run_study(make(), tmp_path / "s")


def test_names_that_would_share_a_file(make: Make, data: Path, tmp_path: Path) -> None:
    sets = [
        {"data": str(data / "test.jsonl"), "name": "set 1"},
        {"data": str(data / "more.jsonl"), "name": "set-1"},
    ]
    with pytest.raises(InputError, match=r"same file \(set-1\.parquet\)"):
        run_study(make(evaluation=sets), tmp_path / "s")


def test_a_folder_in_use(make: Make, copied: Path) -> None:
    (copied / ".holder").write_text("process 4711 on elsewhere")
    with (
        FileLock(copied / ".lock"),
        pytest.raises(InputError, match=r"at work in .*: process 4711 on elsewhere"),
    ):
        threading_safe(lambda: run_study(make(), copied))


def threading_safe(call: Callable[[], object]) -> None:
    """Call in another thread: a lock may be taken again by the thread that has it."""
    caught: list[BaseException] = []

    def attempt() -> None:
        try:
            call()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    if caught:
        raise caught[0]


def test_what_a_killed_process_left_is_cleared_away(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    half = folder / "tunings" / ".writing-abc" / "evaluations"
    half.mkdir(parents=True)
    (half / ".writing-1-x.parquet").write_text("")
    (folder / "tunings" / ".writing-abc" / ".writing-1-order.parquet").write_text("")
    (folder / ".writing-1-hidden").mkdir()
    (folder / ".writing-1-study.yaml").write_text("")
    shutil.move(folder / "tunings", folder / ".writing-2-tunings")
    claim(Folder(folder), "tiny study")
    clear(Folder(folder))
    begin(Folder(folder), finished[1])
    assert not leftovers(folder)


# ---- Kills ---------------------------------------------------------------------------------------

MANY: dict[str, Any] = {
    "strategies": ["random", "blocked", "interleaved", "curriculum", "blocked_curriculum"],
    "seeds": 3,
}


@pytest.fixture(scope="module")
def undisturbed(
    make: Make, contents: Contents, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "s"
    run_study(make(**MANY), folder)
    return contents(folder)


def started(study: Study, folder: Path) -> subprocess.Popen[str]:
    """Start a study by the command line, in a session of its own, as a terminal does."""
    file = folder.with_suffix(".yaml")
    file.write_text(dump_study(study))
    return subprocess.Popen(
        [sys.executable, "-m", "lessonplan", "study", str(file), "-o", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_tunings(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("tunings/*/tuning.json"))) < number:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def no_orphans(session: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not session_members(session):
            return True
        time.sleep(0.05)
    return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@needs_proc
def test_kill_and_start_again(
    make: Make, contents: Contents, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """Only the process that was started is killed; the workers must notice and end."""
    folder = tmp_path / "s"
    process = started(make(**MANY, workers=2), folder)
    try:
        wait_for_tunings(folder, 3, process)
    finally:
        process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert no_orphans(process.pid)
    done = contents(folder)
    assert done
    assert len(done) < len(undisturbed)
    ears = Ears()
    run_study(make(**MANY), folder, ears)
    assert 3 <= ears.began[1] < 16
    assert contents(folder) == undisturbed
    assert not leftovers(folder)


@needs_proc
def test_ctrl_c_and_start_again_with_two_workers(
    make: Make, contents: Contents, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    study = make(**MANY, workers=2)
    process = started(study, folder)
    try:
        wait_for_tunings(folder, 1, process)  # of 16: the others are still to come
        # Workers must not print tracebacks of their own, whenever Ctrl-C comes.
        workers = [p for p in session_members(process.pid) if ignores_ctrl_c(p)]
        assert len(workers) >= 2
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers, too
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped; what was finished is kept" in said
    assert "Traceback" not in said
    assert no_orphans(process.pid)
    ears = Ears()
    run_study(study, folder, ears)
    runs, done = ears.began
    assert (runs, ears.done) == (16, 16 - done)
    assert ears.trained == 48 * ears.done
    assert contents(folder) == undisturbed  # as one worker made it
    assert not leftovers(folder)


def ignores_ctrl_c(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk:"))
    return bool(int(blocked.split()[1], 16) >> (signal.SIGINT - 1) & 1)


# ---- Progress ------------------------------------------------------------------------------------


def test_without_a_terminal_progress_is_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with StudyProgress() as watch:
        watch.begin(3, 1, 100.0)
        watch.say("tiny, curriculum [difficulty=llm], seed 0")
        watch.worked(50.0, trained=50)
        watch.run_done()
        watch.failed("tiny, blocked [/odd]: no memory")
        watch.run_done()
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\r" not in said
    assert said.splitlines()[0] == "3 runs, 1 of them done"
    assert "failed: tiny, blocked [/odd]: no memory" in said
    assert said.splitlines()[-1].startswith("3/3 runs  ")
    assert said.splitlines()[-1].endswith("questions/s")
    assert watch.failures == ["tiny, blocked [/odd]: no memory"]


def test_with_nothing_to_do_progress_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with StudyProgress() as watch:
        watch.begin(3, 3, 0.0)
        watch.say("nothing")
    assert capsys.readouterr().err == "all 3 runs are done\n"


def test_on_a_terminal_names_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with StudyProgress() as watch:
        watch.begin(2, 0, 100.0)
        watch.say("tiny, curriculum [difficulty=llm], seed 0 [/odd]")
        watch.worked(50.0, trained=50)
        watch.run_done()
    assert "curriculum [difficulty=llm], seed 0 [/odd]" in capsys.readouterr().err


def test_work_adds_up(make: Make, tmp_path: Path) -> None:
    ears = Ears()
    run_study(make(seeds=1), tmp_path / "s", ears)
    assert ears.done == 4
    assert abs(ears.work) < 1e-6


@pytest.mark.parametrize(
    ("cores", "threads", "workers", "lacking", "said"),
    [
        (8, 1, 1, 100, "`workers: 8`"),
        (8, 1, 1, 3, "`workers: 3`"),  # no more than there are runs
        (8, 2, 1, 100, "`workers: 4`"),
        (9, 4, 2, 100, None),
        (2, 1, 2, 100, None),
        (2, 2, 1, 100, None),
        (2, 2, 2, 100, "2 workers of 2 threads each get in each other's way on 2 cores"),
        (1, 2, 1, 100, None),  # nothing that fewer workers would help
        (8, 1, 1, 0, None),
    ],
)
def test_cores_that_stay_idle_or_are_wanted_twice(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    threads: int,
    workers: int,
    lacking: int,
    said: str | None,
) -> None:
    monkeypatch.setattr(run_module, "_cores", lambda: cores)
    plan = make_plan(make(recipe={"threads": threads}))
    notes = list(run_module._cores_used(plan, workers, lacking))
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


def test_a_study_says_that_cores_stay_idle(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_cores", lambda: 3)
    ears = Ears()
    run_study(make(seeds=1, strategies=["random"]), tmp_path / "s", ears)
    assert ["`workers: 2`" in note for note in ears.notes] == [True]


def test_hidden_states_are_shared_and_removed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    sound = ModelWork.do

    def watched(self: ModelWork, run: Any) -> None:
        sound(self, run)
        sizes.append(len([p for p in self.shared.iterdir() if not p.name.endswith(".lock")]))

    monkeypatch.setattr(ModelWork, "do", watched)
    run_study(make(seeds=1), tmp_path / "s")
    assert sizes[-1] == sizes[1] == 5  # to train; to score and without question, for two sets
    assert not leftovers(tmp_path / "s")
