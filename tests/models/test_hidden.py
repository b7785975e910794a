"""States that several processes compute together are each computed once, and survive a kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lessonplan.models.hidden import states_in_file

SHAPE, PARTS = (12, 5), 6
EXPECTED = torch.arange(60, dtype=torch.float32).view(SHAPE)


def states_of(file: Path, log: Path, pause: float = 0.0, hold: int | None = None) -> Tensor:
    """Compute two rows a part, and note who does which; `hold` is a part never to be finished."""

    def compute(states: Tensor, part: int) -> None:
        with log.open("a") as lines:
            lines.write(f"{os.getpid()} {part}\n")
        time.sleep(pause if part != hold else 1000)
        states[2 * part : 2 * part + 2] = EXPECTED[2 * part : 2 * part + 2]

    return states_in_file(file, SHAPE, torch.float32, PARTS, compute)


def ask(file: Path, log: Path, pause: float, hold: int | None, start, answers) -> None:
    answers.put("ready")
    start.wait()
    answers.put((os.getpid(), states_of(file, log, pause, hold).tolist()))


def noted(log: Path) -> list[tuple[int, int]]:
    return [(int(p), int(i)) for p, i in (line.split() for line in log.read_text().splitlines())]


def processes(file: Path, log: Path, pause: float, holds: list[int | None]):
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(len(holds)), context.Queue()
    made = [
        context.Process(target=ask, args=(file, log, pause, hold, start, answers), daemon=True)
        for hold in holds
    ]
    for process in made:
        process.start()
    for _ in made:
        answers.get(timeout=60)
    return made, answers


def wait_for(what) -> None:
    for _ in range(600):
        if what():
            return
        time.sleep(0.05)
    raise TimeoutError


def test_processes_share_the_work(tmp_path: Path) -> None:
    log = tmp_path / "log"
    made, answers = processes(tmp_path / "states", log, 0.3, [None, None, None])
    found = [answers.get(timeout=60) for _ in made]
    for process in made:
        process.join()
    assert [states for _, states in found] == [EXPECTED.tolist()] * 3
    who = noted(log)
    assert sorted(part for _, part in who) == list(range(PARTS))  # each once
    assert len({pid for pid, _ in who}) == 3  # and by all of them
    assert not list(tmp_path.glob("states.part")) + list(tmp_path.glob("states.marks"))


def test_what_a_killed_process_held_is_done_by_another(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (held,), _ = processes(tmp_path / "states", log, 0, [2])
    wait_for(lambda: log.exists() and (held.pid, 2) in noted(log))
    (other,), answers = processes(tmp_path / "states", log, 0, [None])
    wait_for(lambda: (other.pid, PARTS - 1) in noted(log))  # it did the rest, and waits
    assert not (tmp_path / "states").exists()
    os.kill(held.pid, signal.SIGKILL)
    assert answers.get(timeout=60) == (other.pid, EXPECTED.tolist())
    assert noted(log).count((other.pid, 2)) == 1


def test_a_part_that_fails_is_done_the_next_time(tmp_path: Path) -> None:
    def fail(states: Tensor, part: int) -> None:
        if part == 3:
            raise MemoryError
        states[2 * part : 2 * part + 2] = EXPECTED[2 * part : 2 * part + 2]

    file = tmp_path / "states"
    with pytest.raises(MemoryError):
        states_in_file(file, SHAPE, torch.float32, PARTS, fail)
    assert not file.exists()
    assert torch.equal(states_of(file, tmp_path / "log"), EXPECTED)
    assert [part for _, part in noted(tmp_path / "log")] == [3, 4, 5]
