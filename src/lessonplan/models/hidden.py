"""The output of the layers that no run changes: computed once, by all processes that need it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Hidden:
    """The output of the lower layers for a set of rows.

    Attributes:
        states: ``[sum of row lengths, H]``, row after row; in memory or memory-mapped.
        starts: where each row begins, int64 ``[rows + 1]``.
    """

    states: Tensor
    starts: NDArray[np.int64]

    def row(self, index: int) -> Tensor:
        return self.states[self.starts[index] : self.starts[index + 1]]


def states_in_file(
    file: Path,
    shape: tuple[int, int],
    dtype: torch.dtype,
    parts: int,
    compute: Callable[[Tensor, int], None],
) -> Tensor:
    """Return states from a file, memory-mapped; what is written to them stays in this process.

    Processes that ask for the same file while it does not exist make it together: each takes the
    next part that no other has. A part whose process dies is done by another.

    Args:
        file: gets its name when all parts are done.
        shape, dtype: of the states.
        parts: into how many the work is cut.
        compute: writes part i of the states.
    """
    unfinished, marks = Path(f"{file}.part"), Path(f"{file}.marks")
    only_one = FileLock(f"{file}.lock")
    with only_one:
        if file.exists():
            return _mapped(file, shape, dtype, "c")
        if not unfinished.exists():
            marks.write_bytes(bytes(parts))
            scratch = Path(f"{file}.new")
            _reserve(scratch, shape[0] * shape[1] * dtype.itemsize)
            scratch.rename(unfinished)
        states = _mapped(unfinished, shape, dtype, "r+")
        done: Any = np.memmap(marks, dtype=np.uint8, mode="r+", shape=(parts,))

    # Those that nobody works on; then, by waiting for them, those of processes that die.
    for patience in (0, -1):
        for part in np.flatnonzero(done == 0).tolist():
            try:
                with FileLock(f"{file}.{part}.lock", timeout=patience):
                    if not done[part]:
                        compute(states, part)
                        done[part] = 1
            except Timeout:
                continue
    with only_one:
        if unfinished.exists():
            unfinished.rename(file)
            marks.unlink()
            for part in range(parts):
                Path(f"{file}.{part}.lock").unlink(missing_ok=True)
    return _mapped(file, shape, dtype, "c")


def _reserve(file: Path, size: int) -> None:
    """Make a file of so many bytes that the disk has room for."""
    with file.open("wb") as empty:
        if hasattr(os, "posix_fallocate"):
            # Where the disk is full, writing to a map of a sparse file would end the process.
            os.posix_fallocate(empty.fileno(), 0, size)
        else:
            empty.truncate(size)


def _mapped(file: Path, shape: tuple[int, int], dtype: torch.dtype, mode: Any) -> Tensor:
    size = shape[0] * shape[1] * dtype.itemsize
    raw: Any = np.memmap(file, dtype=np.uint8, mode=mode, shape=(size,))
    return torch.from_numpy(raw).view(dtype).view(shape)
