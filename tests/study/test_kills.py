"""A study that is killed or stopped by Ctrl-C, and is started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lessonplan.study import Study, run_study
from lessonplan.study import run as run_module
from lessonplan.study.plan import Plan
from lessonplan.study.store import Folder, begin, claim, clear
from lessonplan.study.study_file import dump_study
from tests.study.ears import Ears, leftovers, session_members

Make = Callable[..., Study]
Contents = Callable[[Path], dict[str, str]]
Finished = tuple[Path, Plan]

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
    # Not those in a folder ".writing-...", which is still to get its name.
    while len(list(folder.glob("tunings/[!.]*/tuning.json"))) < number:
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


class FakeProcess:
    def __init__(self, exitcode: int | None) -> None:
        self.exitcode = exitcode


@pytest.mark.parametrize(("codes", "said"), [((None, -9), "status -9"), ((0, 0), "status 0")])
def test_a_worker_that_is_gone_is_noticed(codes: tuple[int | None, ...], said: str) -> None:
    import queue

    class Silence(queue.Queue[Any]):
        def get(self, *_: Any, **__: Any) -> Any:
            raise queue.Empty

    kind, text = run_module._next_news(Silence(), [FakeProcess(code) for code in codes])
    assert kind == "lost"
    assert said in text


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
