"""What tests of studies share: a watch that keeps what it is told, a look at what is left over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lessonplan.study import Watch


def nothing(text: str) -> None:
    pass


class Ears(Watch):
    """Keeps what it is told.

    Attributes:
        disturb: called with "begin" at the beginning, with what a worker says, and with "run" when
            a run is done.
    """

    def __init__(self, disturb: Callable[[str], None] = nothing) -> None:
        self.disturb = disturb
        self.began = (0, 0)
        self.work = 0.0
        self.done = self.trained = 0
        self.said: list[str] = []
        self.notes: list[str] = []
        self.failures: list[str] = []
        self.progressed: list[str] = []

    def begin(self, runs: int, done: int, work: float) -> None:
        self.began, self.work = (runs, done), work
        self.disturb("begin")

    def progress(self, text: str, done: int, total: int) -> None:
        self.progressed.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def say(self, text: str) -> None:
        self.said.append(text)
        self.disturb(text)

    def worked(self, work: float, trained: int = 0) -> None:
        self.work -= work
        self.trained += trained
        self.disturb("")

    def run_done(self) -> None:
        self.done += 1
        self.disturb("run")

    def failed(self, text: str) -> None:
        self.failures.append(text)


def session_members(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".writing-*")) + list(folder.rglob(".holder"))
