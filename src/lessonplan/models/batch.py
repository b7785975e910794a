"""A few token rows as tensors, and who sees whom in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lessonplan.models.rows import Row

SCORING_BATCH = 16


@dataclass(frozen=True)
class Batch:
    """B rows of at most L tokens, and what is read of them.

    Of the N tokens of the rows, T are distinct: what all rows begin with, such as an instruction,
    is the same tokens.

    Attributes:
        ids, positions: int64 ``[B, L]``, padded on the right.
        end: int64 ``[B, L]`` where the texts that a token belongs to end; 0 for padding.
        present: int64 ``[N]`` where tokens stand, row after row, as indices into ``[B * L]``.
        place: int64 ``[T]`` where each distinct token stands (first).
        token: int64 ``[B * L]`` which distinct token stands in each place; 0 for padding.
        spots: int64 ``[U]`` the distinct tokens that are read, as indices into ``[T]``.
        spot: int64 ``[R]`` for each scored token, which of the spots predicts it.
        target: int64 ``[R]`` the token scored.
        slot: int64 ``[R]`` question in the batch * K + option, where K is the most options.
        n_options: int64 ``[B]``.
        parts: where it is several batches in one, these; see `joined`.
    """

    ids: Tensor
    positions: Tensor
    end: Tensor
    present: Tensor
    place: Tensor
    token: Tensor
    spots: Tensor
    spot: Tensor
    target: Tensor
    slot: Tensor
    n_options: Tensor
    parts: tuple[Batch, ...] = field(default=(), kw_only=True)


def collate(
    rows: Sequence[Row], device: torch.device | str = "cpu", *, merging: bool = True
) -> Batch:
    """Put rows into one padded tensor and number the tokens and what is read of them.

    Args:
        merging: count what all rows begin with as the same tokens.
    """
    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max())
    beginning = common_beginning(rows) if merging else 0
    present = np.flatnonzero(np.arange(width) < lengths[:, None])
    again = (present >= width) & (present % width < beginning)
    number = np.cumsum(~again) - 1
    number[again] = present[again] % width

    def padded(values: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        out = np.zeros(len(rows) * width, dtype=np.int64)
        out[present] = np.concatenate(values)
        return out.reshape(len(rows), width)

    token = padded([number]).reshape(-1)
    reads = np.concatenate([i * width + row.read for i, row in enumerate(rows)])
    spots, spot = np.unique(token[reads], return_inverse=True)
    most = max(row.n_options for row in rows)
    arrays = (
        padded([row.ids for row in rows]),
        padded([row.positions for row in rows]),
        padded([row.end for row in rows]),
        present,
        present[~again],
        token,
        spots,
        spot,
        np.concatenate([row.target for row in rows]),
        np.concatenate([i * most + row.option for i, row in enumerate(rows)]),
        np.array([row.n_options for row in rows]),
    )
    return Batch(*(torch.from_numpy(array).to(device) for array in arrays))


def joined(parts: Sequence[Batch]) -> Batch:
    """Return several batches as one, whose rows, tokens and spots stand one after the other.

    What the rows of one batch share is not shared with those of another.
    """
    width = max(part.ids.shape[1] for part in parts)
    options = max(int(part.n_options.max()) for part in parts)
    rows = tokens = spots = 0
    found: list[tuple[Tensor, ...]] = []
    for part in parts:
        own, own_options = part.ids.shape[1], int(part.n_options.max())
        found.append(
            (
                _wider(part.ids, width),
                _wider(part.positions, width),
                _wider(part.end, width),
                _moved(part.present, rows, own, width),
                _moved(part.place, rows, own, width),
                _wider(part.token.view(-1, own) + tokens, width).flatten(),
                part.spots + tokens,
                part.spot + spots,
                part.target,
                _moved(part.slot, rows, own_options, options),
                part.n_options,
            )
        )
        rows += len(part.ids)
        tokens += len(part.place)
        spots += len(part.spots)
    return Batch(*(torch.cat(column) for column in zip(*found, strict=True)), parts=tuple(parts))


def _wider(values: Tensor, width: int) -> Tensor:
    return nn.functional.pad(values, (0, width - values.shape[1]))


def _moved(places: Tensor, rows: int, width: int, now: int) -> Tensor:
    """Return where places in rows of one width are after so many rows of another."""
    return (places // width + rows) * now + places % width


def common_beginning(rows: Sequence[Row]) -> int:
    """Return how many tokens all rows begin with, none of them an option's own."""
    length = min(len(row) for row in rows)
    first = rows[0].ids[:length]
    same = np.ones(length, dtype=bool)
    for row in rows:
        same &= (row.ids[:length] == first) & (row.end[:length] == len(row))
        same &= row.positions[:length] == np.arange(length)
    return length if same.all() else int(same.argmin())


def collate_plain(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Put each option's text into a row of its own; slots and options are still the questions'."""
    batch = collate([alone for row in rows for alone in _alone(row)], device, merging=False)
    most = max(row.n_options for row in rows)
    slots = np.concatenate([i * most + np.arange(row.n_options) for i, row in enumerate(rows)])
    return replace(
        batch,
        slot=torch.from_numpy(slots).to(device)[batch.slot],
        n_options=torch.tensor([row.n_options for row in rows], device=device),
    )


def _alone(row: Row) -> list[Row]:
    """Return a plain row for each option: its own text, from beginning to end."""
    alone = []
    for k in range(row.n_options):
        scored = row.option == k
        last = row.read[scored].max()
        text = np.flatnonzero((np.arange(len(row)) <= last) & (last < row.end))
        alone.append(
            Row(
                ids=row.ids[text],
                positions=row.positions[text],
                end=np.full(len(text), len(text)),
                read=np.searchsorted(text, row.read[scored]),
                target=row.target[scored],
                option=np.zeros(int(scored.sum()), dtype=np.int64),
                n_options=1,
                lengths=row.lengths[k : k + 1],
            )
        )
    return alone


def tree_mask(end: Tensor) -> Tensor:
    """Return who sees whom: bool ``[B, 1, L, L]``, queries by keys.

    A token sees what stands before it in its own text, and itself (padding, too, so that no row of
    the softmax is empty).
    """
    place = torch.arange(end.shape[1], device=end.device)
    query, key = place[:, None], place[None, :]
    seen = (key <= query) & (query < end[:, None, :])
    return (seen | (key == query))[:, None]


def near_mask(positions: Tensor, window: int) -> Tensor:
    """Return which tokens stand less than a window apart: bool ``[B, 1, L, L]``.

    The window counts positions in the text, not places in the row.
    """
    return (positions[:, :, None] - positions[:, None, :] < window)[:, None]


def batches_by_length(rows: Sequence[Row], size: int = SCORING_BATCH) -> Iterator[list[int]]:
    """Yield row numbers in batches of rows of similar length: little padding, always the same."""
    by_length = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    for start in range(0, len(rows), size):
        yield by_length[start : start + size]
