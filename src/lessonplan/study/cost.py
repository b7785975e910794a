"""What the runs of a study took, from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from lessonplan.study.files import read_json
from lessonplan.study.plan import UNTUNED
from lessonplan.study.store import TUNING, held_settings, open_folder


@dataclass(frozen=True)
class Cost:
    """Means over the finished runs of a study, in seconds.

    Attributes:
        tuning: of a fine-tuning alone.
        scoring: of scoring one run on all its questions, on the way and at the end.
        workers: runs that went side by side.
    """

    tuning: float
    scoring: float
    workers: int

    def hours(self, runs: int, questions: float = 1.0) -> float:
        """Return the time of so many runs.

        Args:
            runs: fine-tunings.
            questions: how many are scored, as a multiple of what was.
        """
        return runs * (self.tuning + self.scoring * questions) / self.workers / 3600


def run_cost(path: Path) -> Cost | None:
    """Return what the runs of a study folder took, None where none is finished.

    Raises:
        InputError: no study there, or a file of it is broken.
    """
    folder = open_folder(path)
    ids = [r["id"] for r in read_json(folder.plan_file)["runs"] if r["arm"] != UNTUNED]
    logs = [read_json(folder.tuning(i) / TUNING) for i in ids if folder.has_tuning(i)]
    if not logs:
        return None
    scoring = fmean(log["scoring_seconds"] for log in logs)
    whole = fmean(log["seconds"] for log in logs)
    return Cost(whole - scoring, scoring, int(held_settings(folder).get("workers", 1)))
