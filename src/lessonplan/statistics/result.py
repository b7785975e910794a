"""What is found for one model on one evaluation set."""

from __future__ import annotations

from dataclasses import dataclass, field

from lessonplan.evaluation.outcomes import Outcome
from lessonplan.statistics.crossed import Estimate
from lessonplan.statistics.family import Gain, Pair
from lessonplan.statistics.luck import BestOf

ACCURACY = "accuracy"


@dataclass(frozen=True)
class GroupScore:
    """One arm on a part of the evaluation set.

    Attributes:
        kind: "category", or "answer" (its text was, or was not, an answer in training), or
            "judged apart" (options that point at other options).
        arm: "" for the untuned model.
        score: mean over runs and questions; gain: over the baseline, None for it and the untuned.
    """

    kind: str
    group: str
    questions: int
    arm: str
    score: float
    gain: Estimate | None


@dataclass(frozen=True)
class Result:
    """What was found for one model on one evaluation set.

    Attributes:
        outcome: the scores that it was found from.
        scores: arm -> mean score with its interval; an arm without any run is absent.
        untuned: the model before fine-tuning; None where unknown.
        chance: accuracy of uniform guessing; constant: of the best constant letter, where letters
            matter; floor: the larger; None where unknown.
        at_floor: neither the untuned model nor the baseline clears the floor.
        at_ceiling: the baseline cannot be told from perfect.
        best: the best of the K gains beside luck; None where no gain is testable.
        pairs: every two arms compared; best_of_all: the arm that beats all others, if one does.
        smallest: the gain that would have been seen with a power of 80% at the first step of Holm's
            procedure (`typical_smallest`); None where no arm is testable.
        notes: what a reader must know about the runs, one sentence each.
    """

    outcome: Outcome
    scores: dict[str, Estimate]
    untuned: Estimate | None
    chance: float | None
    constant: float | None
    at_floor: bool
    at_ceiling: bool
    gains: list[Gain]
    best: BestOf | None
    pairs: list[Pair]
    best_of_all: str | None
    smallest: float | None
    groups: list[GroupScore]
    notes: list[str] = field(default_factory=list)

    @property
    def floor(self) -> float | None:
        """The larger of chance and the best constant letter."""
        return max((f for f in (self.chance, self.constant) if f is not None), default=None)

    @property
    def blocked(self) -> str:
        """Why nothing can be concluded from these scores: "floor" or "ceiling", else ""."""
        return limit_reached(self.at_floor, self.at_ceiling)


def limit_reached(at_floor: bool, at_ceiling: bool) -> str:
    """Return the limit that scores are at, "floor" or "ceiling", else ""."""
    # The interval of a few questions can be so wide that it reaches both.
    return "floor" if at_floor else "ceiling" if at_ceiling else ""
