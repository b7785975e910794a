"""A label of a set of questions, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lessonplan.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["difficulty", "category"]
KINDS: tuple[Kind, ...] = ("difficulty", "category")


@dataclass(frozen=True)
class Label:
    """A label of n questions under one source.

    Attributes:
        kind: "difficulty" or "category".
        values: float64 ``[n]`` from 0 (easiest) up, not finite where a question has none, or n
            categories, None where a question has none.
        origin: how it was made, in words.
        notes: what a reader must know, one sentence each.
        uninformative: for each labelling model that does no better than guessing, a sentence.
        details: further columns of n entries that it was made from.
        place: float64 ``[n, 2]`` where each question stands on a map; None without one.
    """

    kind: Kind
    values: NDArray[np.float64] | list[str | None]
    origin: str
    notes: list[str] = field(default_factory=list)
    uninformative: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    place: NDArray[np.float64] | None = None

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which questions have no label, bool ``[n]``."""
        if isinstance(self.values, list):
            return np.array([value is None for value in self.values], dtype=np.bool_)
        return ~np.isfinite(self.values)

    def values_of(self, kept: NDArray[np.int64]) -> NDArray[np.float64] | list[str | None]:
        """Return the labels of some of the questions, by their numbers."""
        if isinstance(self.values, list):
            return [self.values[i] for i in kept]
        return self.values[kept]

    def part(self, kept: NDArray[np.int64]) -> Label:
        """Return the label of some of the questions, by their numbers."""
        import pyarrow as pa

        return replace(
            self,
            values=self.values_of(kept),
            details={name: pa.array(column).take(kept) for name, column in self.details.items()},
            place=None if self.place is None else self.place[kept],
        )


def checked(label: Label, name: str) -> Label:
    """Return a label that an order can be made by.

    Raises:
        InputError: no question has one, or all difficulties are equal.
    """
    missing = label.missing
    if missing.all():
        raise InputError(
            f"{name}: no question has a {label.kind} ({label.origin}). "
            + "".join(f"{note} " for note in label.notes)
            + f"Take another source of the {label.kind}, or leave out the strategies that use it."
        )
    if not isinstance(label.values, list):
        present = label.values[~missing]
        if len(present) > 1 and np.ptp(present) == 0:
            raise InputError(
                f"{name}: the difficulty ({label.origin}) is {present[0]:g} for all "
                f"{len(present)} questions, so it says nothing about their order. Take another "
                "source, or leave out the strategies that use difficulty."
            )
    return label


def label_table(label: Label, ids: list[str]) -> pa.Table:
    """Return a label as a table: id, the label, what it was made from, and a warning column.

    The column ``uninformative`` is there only where a labelling model was no better than guessing.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {"id": ids, label.kind: pa.array(label.values, from_pandas=True)}
    columns |= label.details
    if label.place is not None:
        columns |= {"x": label.place[:, 0], "y": label.place[:, 1]}
    if label.uninformative:
        columns["uninformative"] = [" ".join(label.uninformative)] * len(ids)
    return pa.table(columns)
