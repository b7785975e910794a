"""What the runs of a study took, and what those of another will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lessonplan.study.arms import arms
from lessonplan.study.config import Study, model_recipe
from lessonplan.study.files import read_json
from lessonplan.study.plan import UNTUNED, curve_points, curve_questions
from lessonplan.study.store import TUNING, Folder, open_folder


@dataclass(frozen=True)
class Cost:
    """Means over the finished runs of a study, in seconds.

    Attributes:
        tuning: of a question that is trained on, each time that it is seen.
        scoring: of a question that is scored, on the way or at the end.
    """

    tuning: float
    scoring: float


@dataclass(frozen=True)
class Work:
    """What a seed of a study asks for: fine-tunings, and questions trained on and scored in all."""

    runs: int
    trained: float
    scored: float

    def seconds(self, cost: Cost) -> float:
        """Return the time that it takes, one run after the other."""
        return self.trained * cost.tuning + self.scored * cost.scoring


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
    scoring = sum(log["scoring_seconds"] for log in logs)
    tuning = sum(log["seconds"] for log in logs) - scoring
    trained = sum(log["questions"] for log in logs)
    return Cost(tuning / trained, scoring / max(1, sum(_scored(folder, log) for log in logs)))


def _scored(folder: Folder, log: dict[str, Any]) -> int:
    """Return how many questions were scored in a run, in the seconds that its log gives.

    Logs from before that was written down do not tell: then all sets count, later ones, too.
    """
    if "scored" in log:
        return int(log["scored"])
    files = (folder.tuning(log["id"]) / "evaluations").glob("*.parquet")
    return sum(pq.read_metadata(file).num_rows for file in files)


def seed_work(study: Study, sizes: Mapping[str, float]) -> Work:
    """Return the work of one seed: every model, training set, arm and fold.

    Args:
        study: the study.
        sizes: the number of questions of each training and evaluation set.
    """
    runs, trained, scored = 0, 0.0, 0.0
    for spec in study.models:
        recipe = model_recipe(study, spec)
        for training in study.training:
            parts = training.folds or 1
            held_out = sizes[training.title] / parts if training.folds else 0.0
            shown = (sizes[training.title] - held_out) * recipe.epochs
            for _, arm, _ in arms(study):
                exposures = shown * arm.repeat
                points = len(curve_points(study, recipe, exposures))
                of_run = sum(
                    size + points * min(size, curve_questions(study, among))
                    for size, among in [
                        (held_out, parts),
                        *((sizes[evaluated.title], 1) for evaluated in study.evaluation),
                    ]
                )
                runs += parts
                trained += parts * exposures
                scored += parts * of_run
    return Work(runs, trained, scored)
