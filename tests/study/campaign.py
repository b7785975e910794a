"""Kill a study again and again, at random moments of every phase, and see what is left.

    python -m tests.study.campaign --kills 24 --seed 0

A real `lessonplan study` command is killed with SIGKILL, its workers with it, and started again,
until it ends by itself. Its results must then be those of a study that nobody disturbed, byte for
byte. Where a process is at the moment is asked from outside: it writes down its stack when it gets
a signal, and nothing of lessonplan is changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.conftest import build_tiny
from tests.questions import write_rows
from tests.study.conftest import sourced_rows
from tests.study.ears import session_members

# A process is in the first phase of which its stack holds a frame.
PHASES = {
    "report": r"/cli\.py _report$",
    "writing": r"/(files|checksums|lora|store)\.py (write_\w+|add_sum|save|begin)$",
    "evaluating": r"/work\.py _score$",
    "tuning": r"/tune\.py tune$",
    "labelling": r"/labelling\.py make_label$",
    "planning": r"/plan\.py make_plan$",
}
DURING_RUNS = ("tuning", "evaluating", "writing", "any moment")
# Python runs a file of this name when it starts: the main process, and each worker.
LISTENER = """
import atexit, os, signal

place = os.path.join(os.environ["STACKS"], str(os.getpid()))
stacks = os.open(place, os.O_CREAT | os.O_WRONLY)
atexit.register(os.unlink, place)  # a process that is ending must get no signal

def tell(number, frame):
    lines = []
    while frame is not None:
        lines.append(f"{frame.f_code.co_filename} {frame.f_code.co_name}\\n")
        frame = frame.f_back
    os.write(stacks, "".join(lines).encode())

signal.signal(signal.SIGUSR1, tell)
signal.siginterrupt(signal.SIGUSR1, False)
os.write(stacks, b"listening\\n")
"""
USUAL, PATIENCE = 8.0, 600.0  # seconds that one start takes, and may take at most


class Start:
    """One start of the study, as from a terminal: in a session of its own."""

    def __init__(self, study: Path, folder: Path) -> None:
        self.home = Path(tempfile.mkdtemp(dir=study.parent, prefix="start-"))
        (self.home / "sitecustomize.py").write_text(LISTENER)
        (self.home / "stacks").mkdir()
        self.folder = folder
        self.read: Counter[Path] = Counter()
        paths = [str(self.home), *filter(None, [os.environ.get("PYTHONPATH")])]
        listen = {"PYTHONPATH": os.pathsep.join(paths), "STACKS": str(self.home / "stacks")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lessonplan", "study", str(study), "-o", str(folder)],
            env=os.environ | listen,
            stdout=subprocess.DEVNULL,
            stderr=(self.home / "stderr").open("w"),
            start_new_session=True,
        )

    def phases(self) -> set[str]:
        """Return the phases that its processes are in."""
        files = list((self.home / "stacks").iterdir())
        for file in files:
            with contextlib.suppress(OSError):  # it has ended
                if file.stat().st_size:
                    os.kill(int(file.name), signal.SIGUSR1)
        time.sleep(0.003)
        found = set()
        for file in files:
            with contextlib.suppress(OSError):
                told = file.read_bytes()
                found.add(phase_of(told[self.read[file] :].decode()))
                self.read[file] = len(told)
        return found

    def kill_in(self, target: str, runs: int, dice: random.Random) -> bool:
        """Kill it, workers and all.

        Args:
            target: a phase, or "any moment" of the time that it usually takes.
            runs: so many must be finished before.

        Returns:
            False: it ended by itself, before or at the kill.
        """
        started = time.monotonic()
        moment = started + (dice.uniform(0, USUAL) if target == "any moment" else PATIENCE)
        while self.process.poll() is None and time.monotonic() < moment:
            if target in self.phases() and len(finished_runs(self.folder)) >= runs:
                time.sleep(dice.uniform(0, 0.002 if target == "writing" else 0.02))
                break
        check(time.monotonic() < started + PATIENCE, "a start did not end")
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        killed = self.process.wait() == -signal.SIGKILL
        check(killed or self.process.returncode == 0, self.said())
        self.leave_no_orphan()
        return killed

    def finish(self) -> None:
        """Let it end by itself."""
        self.process.wait(PATIENCE)
        check(self.process.returncode == 0, self.said())
        self.leave_no_orphan()

    def said(self) -> str:
        return f"status {self.process.returncode}: {(self.home / 'stderr').read_text()}"

    def leave_no_orphan(self) -> None:
        deadline = time.monotonic() + 20
        while members := session_members(self.process.pid):
            check(time.monotonic() < deadline, f"processes {members} are left")
            time.sleep(0.01)


def phase_of(stack: str) -> str:
    return next((p for p, frame in PHASES.items() if re.search(frame, stack, re.M)), "another")


def check(right: bool, otherwise: str) -> None:
    """End the campaign, with status 1, unless all is right."""
    if not right:
        sys.exit(f"failed: {otherwise}")


def write_studies(home: Path, workers: int) -> list[Path]:
    """Write a study, and the same with a second evaluation set; both with a label by a model."""
    study: dict[str, Any] = {
        "name": "campaign",
        "models": [{"model": str(home / "tiny"), "name": "tiny"}],
        "training": [{"data": str(home / "train.jsonl")}],
        "evaluation": [{"data": str(home / "test.jsonl")}],
        "strategies": ["random", "blocked", "interleaved", "curriculum"],
        "labels": {"difficulty": {"own": {"measure": "loss", "allow_uninformative": True}}},
        "seeds": 8,
        "recipe": {"threads": 1, "learning_rate": 5e-3, "adapter": {"rank": 4, "layers": 2}},
        "checkpoints": {"at": [0.5], "questions": 10},
        "workers": workers,
    }
    more = [*study["evaluation"], {"data": str(home / "more.jsonl")}]
    files = [home / f"study-{workers}.yaml", home / f"more-{workers}.yaml"]
    for file, changes in zip(files, ({}, {"evaluation": more}), strict=True):
        file.write_text(json.dumps(study | changes))  # JSON is YAML
    return files


def results(folder: Path) -> dict[str, Any]:
    """Return all that a study's folder holds, as it must come out whatever happened on the way.

    Times of day and durations are left out, and with them the checksums of the files that have
    them, the page that adds them up, and the number of workers.
    """
    found: dict[str, Any] = {}
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if file.name == "tuning.json":
            found[name] = {k: v for k, v in json.loads(file.read_text()).items() if "sec" not in k}
        elif file.name == "SHA256SUMS":
            lines = file.read_text().splitlines()
            found[name] = [line for line in lines if not line.endswith("tuning.json")]
        elif file.is_file() and name not in (".lock", "study.yaml", "report/index.html"):
            found[name] = digest(file)
    return found


def finished_runs(folder: Path) -> dict[str, tuple[int, str]]:
    """Return each finished run with what changes when it is done again: its file, and its times."""
    return {
        file.parent.name: (file.stat().st_ino, digest(file))
        for file in folder.glob("tunings/[!.]*/tuning.json")
    }


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def campaign(
    home: Path, workers: int, kills: int, dice: random.Random, undisturbed: dict[str, Any]
) -> tuple[Counter[str], int]:
    """Kill one study so many times; return how often in which phase, and the number of runs."""
    folder = home / f"killed-{workers}"
    first, more = write_studies(home, workers)
    during = [dice.choice(DURING_RUNS) for _ in range(max(0, kills - 5))]
    stages = [
        (first, ["planning", "labelling", *during]),
        (more, ["evaluating", "writing", "report"]),
    ]
    struck: Counter[str] = Counter()
    finished: dict[str, tuple[int, str]] = {}
    for study, targets in stages:
        ahead: list[str | None] = [*targets, None]
        while ahead:
            target = ahead.pop(0)
            before = time.monotonic()
            start = Start(study, folder)
            more_runs = dice.randint(0, 2) if target in during else 0
            end = "ended"
            if target is None:
                start.finish()
            elif start.kill_in(target, len(finished) + more_runs, dice):
                struck[target] += 1
                end = f"killed, {target}"
            else:
                ahead.insert(-1, "any moment")
            now = finished_runs(folder)
            lost = [run for run in finished if now.get(run) != finished[run]]
            check(not lost, f"runs are gone or were done again: {lost}")
            finished = now
            print(
                f"workers {workers}: {end:20}{time.monotonic() - before:7.1f} s "
                f"{len(finished):4} runs finished",
                flush=True,
            )
    found = results(folder)
    differ = [n for n in found.keys() | undisturbed.keys() if found.get(n) != undisturbed.get(n)]
    check(not differ, f"not as in an undisturbed study: {sorted(differ)}")
    planned = {run["id"] for run in json.loads((folder / "plan.json").read_text())["runs"]}
    there = {path.name for path in (folder / "tunings").iterdir()}
    check(there == planned == finished.keys(), f"runs {sorted(there ^ planned)} are there or lack")
    return struck, len(planned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--kills", type=int, default=24, help="in all, five or more for each number of workers (24)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 3], help="(1 3)")
    given = parser.parse_args()
    dice = random.Random(given.seed)
    started = time.monotonic()
    struck: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        build_tiny("llama", home / "tiny")
        write_rows(home / "train.jsonl", sourced_rows(48))
        write_rows(home / "test.jsonl", sourced_rows(48, first=100))
        write_rows(home / "more.jsonl", sourced_rows(24, first=200))
        for study in write_studies(home, 1):
            Start(study, home / "undisturbed").finish()
        undisturbed = results(home / "undisturbed")
        runs = 0
        for number, workers in enumerate(given.workers):
            share = (given.kills + number) // len(given.workers)
            hit, done = campaign(home, workers, share, dice, undisturbed)
            struck, runs = struck + hit, runs + done
    phases = ", ".join(f"{phase} {count}" for phase, count in struck.most_common())
    print(
        f"{struck.total()} kills ({phases}), as many restarts, {runs} runs, "
        f"{time.monotonic() - started:.0f} s: all results equal an undisturbed study's, "
        "no finished run was done again, nothing is left over"
    )


if __name__ == "__main__":
    main()
