"""Live progress in the terminal: runs done, questions a second, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lessonplan.errors import without_secrets
from lessonplan.study.watch import Watch

# Without a terminal, one line a finished run, at most one every so many seconds.
QUIET_SECONDS = 10.0


class Phase(Protocol):
    """Takes a text and the number of rows (None: not known); returns what is told those done."""

    def __call__(self, text: str, total: int | None = None) -> Callable[[int], None]: ...


class StudyProgress(Watch):
    """A `Watch` that draws one bar, or prints lines where there is no terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.failures: list[str] = []
        self._bar = Progress(
            TextColumn("{task.fields[runs]}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}  # before the runs, such as labelling
        self._runs = self._done = self._trained = 0
        self._started = self._printed = time.perf_counter()

    def __enter__(self) -> StudyProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, runs: int, done: int, work: float) -> None:
        self._runs, self._done = runs, done
        self._started = time.perf_counter()
        if done == runs:
            self.console.print(f"all {runs} runs are done")
            return
        self.console.print(f"{runs} runs, {done} of them done")
        self._task = self._bar.add_task("", total=work, runs=self._count(), speed="")

    def progress(self, text: str, done: int, total: int) -> None:
        if text not in self._tasks:
            self._tasks[text] = self._bar.add_task(text, total=total, runs="", speed="")
            if not self.console.is_terminal:
                self.console.print(text, markup=False)
        self._bar.update(self._tasks[text], completed=done, visible=done < total)

    def note(self, text: str) -> None:
        self.console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, description=text)

    def worked(self, work: float, trained: int = 0) -> None:
        self._trained += trained
        if self._task is not None:
            self._bar.update(self._task, advance=work, speed=self._speed())

    def run_done(self) -> None:
        self._done += 1
        if self._task is not None:
            self._bar.update(self._task, runs=self._count())
        now = time.perf_counter()
        if not self.console.is_terminal and (
            now - self._printed > QUIET_SECONDS or self._done == self._runs
        ):
            self._printed = now
            self.console.print(f"{self._count()}  {self._speed()}")

    def failed(self, text: str) -> None:
        text = without_secrets(text)
        self.failures.append(text)
        self.console.print(f"failed: {text}", markup=False, soft_wrap=True)

    def _count(self) -> str:
        return f"{self._done}/{self._runs} runs"

    def _speed(self) -> str:
        """Return the questions trained on a second, scoring included."""
        if not self._trained:
            return ""
        return f"{self._trained / (time.perf_counter() - self._started):.1f} questions/s"


@contextmanager
def step_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told the number of questions seen, and draw a bar of it."""
    with rows_bar() as phase:
        yield phase("fine-tuning", total)


@contextmanager
def rows_bar() -> Iterator[Phase]:
    """Yield a function that begins a phase of work, and draw a bar for each phase."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:

        def phase(text: str, total: int | None = None) -> Callable[[int], None]:
            task = bar.add_task(text, total=total)
            return lambda done: bar.update(task, completed=done)

        yield phase
