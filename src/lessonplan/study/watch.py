"""Being told how a study goes."""

from __future__ import annotations

from collections.abc import Callable


class Watch:
    """Is told how a study goes. This one is silent; the command line draws bars."""

    def begin(self, runs: int, done: int, work: float) -> None:
        """`done` of `runs` are finished; the rest is `work` questions' worth."""

    def progress(self, text: str, done: int, total: int) -> None:
        """So much of a task before the runs, such as labelling, is done."""

    def counter(self, text: str, total: int) -> Callable[[int], None]:
        """Return a function that is told how much more of a task is done."""
        done = 0
        self.progress(text, 0, total)

        def more(count: int) -> None:
            nonlocal done
            done += count
            self.progress(text, done, total)

        return more

    def note(self, text: str) -> None:
        """The user should know this of the study, its folder or the cluster."""

    def say(self, text: str) -> None:
        """What is going on now."""

    def worked(self, work: float, trained: int = 0) -> None:
        """So much work, of it so many questions trained on, is done."""

    def run_done(self) -> None:
        """One more run is finished."""

    def failed(self, text: str) -> None:
        """A run failed; the others go on."""
