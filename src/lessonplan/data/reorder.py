"""Rows in another order, of which only a part is in memory at any time.

Taking the rows one by one from where they lie would read a file larger than memory a page a row.
Here all is read and written in long runs: the new order is cut into parts, every row goes to the
scratch files of those parts that show it, and then one part after the other is put in order. A part
that is still too large is cut again. (Aggarwal and Vitter 1988: permuting by distribution.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PARTS = 64  # each has an open file
PART_BYTES = 2**28
SLICE_ROWS = 2**14


def reordered(
    batches: Iterable[Any],
    schema: Any,
    order: NDArray[np.int64],
    scratch: Path,
    *,
    part_bytes: int = PART_BYTES,
) -> Iterator[Any]:
    """Yield the rows of a stream in another order.

    Args:
        batches: Arrow record batches; together the rows 0, 1, 2 and so on.
        schema: their Arrow schema.
        order: int64 ``[m]``, row numbers; they may repeat or leave rows out. Numbers of rows that
            are not there are passed over.
        scratch: a folder with room for m rows, uncompressed. What is written there is deleted on
            the way.
        part_bytes: the most that is held in memory at once, twice over; a single row may be more.

    Yields:
        Arrow tables, together the rows ``order[0]``, ``order[1]`` and so on.
    """
    rows_per_part = max(1, -(-len(order) // PARTS))
    parts = [order[i : i + rows_per_part] for i in range(0, len(order), rows_per_part)]
    scratch.mkdir(exist_ok=True)
    files = [scratch / f"{i}.arrow" for i in range(len(parts))]
    _distribute(batches, schema, parts, files)
    for part, file in zip(parts, files, strict=True):
        # The part's rows lie there by their numbers, equal ones side by side.
        place = np.empty(len(part), dtype=np.int64)
        place[np.argsort(part, kind="stable")] = np.arange(len(part))
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as rows:
            if len(part) > 1 and file.stat().st_size > part_bytes:
                finer = scratch / file.stem
                yield from reordered(rows, schema, place, finer, part_bytes=part_bytes)
            else:
                table = rows.read_all().combine_chunks()
                for i in range(0, len(place), SLICE_ROWS):
                    yield table.take(pa.array(place[i : i + SLICE_ROWS]))
        file.unlink()


def _distribute(
    batches: Iterable[Any], schema: Any, parts: list[NDArray[np.int64]], files: list[Path]
) -> None:
    """Write the rows that each part shows to its file, by ascending number."""
    wanted = [np.sort(part) for part in parts]
    start = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_stream(str(file), schema)) for file in files]
        for batch in batches:
            for rows, writer in zip(wanted, writers, strict=True):
                first, last = np.searchsorted(rows, (start, start + batch.num_rows))
                if last > first:
                    writer.write_batch(batch.take(pa.array(rows[first:last] - start)))
            start += batch.num_rows
