"""Ordering a file of ten million rows: `lessonplan order` against a plain copy of the file.

Prints a Markdown table with a line for each format and strategy.

- Seconds: wall clock of the whole command, Python's start included, until the new file is on disk
  (`os.fsync`). The copy is `shutil.copyfile` and the same `os.fsync`; it only moves bytes, and so
  no program that looks at the rows can be as fast. Arms take turns.
- Peak memory: the highest resident memory of the command's process.
- Disk: the most that the scratch files and the new file took together.
- Right: the rows of the new file have the ids of the promised order, and as many bytes as the old
  file (text formats).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

import lessonplan
from bench.compare import peak_memory_here, ratios, seconds, spread, take_turns

FORMATS = ("parquet", "jsonl", "csv")
STRATEGIES = ("random", "interleaved_curriculum")
CATEGORIES = 20
CHUNK = 100_000
WORDS = ("the", "of", "in", "patient", "with", "most", "likely", "diagnosis", "acute", "pain")


def labels(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"category": rng.integers(CATEGORIES, size=rows), "difficulty": rng.random(rows)}


def chunks(rows: int) -> Iterator[pa.Table]:
    """Yield the rows: id, question (about 100 bytes), answer, category and difficulty."""
    found = labels(rows)
    rng = np.random.default_rng(1)
    pool = [" ".join(rng.choice(WORDS, size=size)) for size in rng.integers(8, 30, size=5000)]
    for start in range(0, rows, CHUNK):
        part = slice(start, min(start + CHUNK, rows))
        n = part.stop - part.start
        picked = rng.integers(len(pool), size=n)
        ids = range(part.start, part.stop)
        yield pa.table(
            {
                "id": [f"q{i:08}" for i in ids],
                "question": [f'"{i}", {pool[k]}?' for i, k in zip(ids, picked, strict=True)],
                "answer": rng.integers(4, size=n),
                "category": [f"category {c:02}" for c in found["category"][part]],
                "difficulty": found["difficulty"][part],
            }
        )


def make(path: Path, rows: int) -> None:
    kind = path.suffix[1:]
    tables = chunks(rows)
    first = next(tables)
    with path.open("wb") as file:
        if kind == "jsonl":
            for table in (first, *tables):
                file.writelines(json.dumps(row).encode() + b"\n" for row in table.to_pylist())
            return
        open_writer: Any = pq.ParquetWriter if kind == "parquet" else pyarrow.csv.CSVWriter
        with open_writer(file, first.schema) as writer:
            for table in (first, *tables):
                writer.write_table(table)


def is_right(source: Path, out: Path, strategy: str, rows: int) -> bool:
    found = labels(rows)
    names = np.array([f"category {c:02}" for c in range(CATEGORIES)], dtype=object)
    expected = lessonplan.order(
        strategy, rows, category=names[found["category"]], difficulty=found["difficulty"]
    )
    if out.suffix == ".parquet":
        ids = pq.read_table(out, columns=["id"])["id"].to_numpy()
        shown = np.array([int(i[1:]) for i in ids])
    else:
        with out.open("rb") as file:
            first = re.compile(rb'"q(\d{8})"')
            matches = (first.search(line[:40]) for line in file)
            shown = np.fromiter((int(m[1]) for m in matches if m), dtype=np.int64)
        if out.stat().st_size != source.stat().st_size:
            return False
    return np.array_equal(shown, expected)


def order_file(source: Path, out: Path, strategy: str) -> float:
    """Run the command; return its peak memory in MiB."""
    command = [sys.executable, "-m", "bench.order_file", "--run", str(source), str(out), strategy]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    sync(out)
    return float(done.stdout.split()[-1])


def run_here(source: str, out: str, strategy: str) -> None:
    from lessonplan.cli import app

    app(["order", source, "-s", strategy, "-o", out, "--overwrite"], standalone_mode=False)
    print(peak_memory_here())


def copy(source: Path, out: Path) -> None:
    shutil.copyfile(source, out)
    sync(out)


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def measure(folder: Path, kind: str, rows: int, turns: int) -> dict[str, dict[str, Any]]:
    """Return, by strategy, the figures of ordering a file and of copying it."""
    source, out = folder / f"rows.{kind}", folder / f"ordered.{kind}"
    make(source, rows)
    sync(source)
    peaks: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
    disks: dict[str, float] = {}
    right: dict[str, bool] = {}

    def ordered(strategy: str) -> float:
        with MostDisk(folder) as disk:
            taken = seconds(lambda: peaks[strategy].append(order_file(source, out, strategy)))
        disks[strategy] = disk[0] - source.stat().st_size / 2**20
        right[strategy] = is_right(source, out, strategy, rows)
        out.unlink()
        return taken

    def copied() -> float:
        taken = seconds(lambda: copy(source, out))
        out.unlink()
        return taken

    arms = {s: lambda s=s: ordered(s) for s in STRATEGIES} | {"copy": copied}
    taken = take_turns(arms, turns)
    size = source.stat().st_size / 2**20
    source.unlink()
    return {
        strategy: {
            "file_mib": size,
            "ours": spread(taken[strategy]),
            "copy": spread(taken["copy"]),
            "ratio": ratios(taken["copy"], taken[strategy]),
            "peak_memory_mib": max(peaks[strategy]),
            "disk_mib": disks[strategy],
            "right": right[strategy],
        }
        for strategy in STRATEGIES
    }


class MostDisk:
    """Watch how much a folder holds, in MiB, ten times a second."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most, self.stop = folder, [0.0], threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        while not self.stop.wait(0.1):
            self.most[0] = max(self.most[0], self.now())

    def now(self) -> float:
        size = 0
        for place, _, names in os.walk(self.folder):
            for name in names:
                try:
                    size += os.stat(os.path.join(place, name)).st_blocks * 512
                except FileNotFoundError:
                    continue  # deleted in between
        return size / 2**20

    def __enter__(self) -> list[float]:
        self.thread.start()
        return self.most

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def table(figures: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [
        "| file | strategy | lessonplan (s) | copy (s) | lessonplan / copy | peak memory (MiB) "
        "| disk (MiB) | right |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for kind, by_strategy in figures.items():
        for strategy, found in by_strategy.items():
            cells = [
                f"{kind}, {found['file_mib']:,.0f} MiB",
                strategy,
                *(f"{found[arm]['median']:.1f}" for arm in ("ours", "copy", "ratio")),
                f"{found['peak_memory_mib']:,.0f}",
                f"{found['disk_mib']:,.0f}",
                "yes" if found["right"] else "NO",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--folder", type=Path, help="where the files are made, and deleted after")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_here(*arguments.run)
        return
    print(f"{arguments.rows:,} rows, median of {arguments.turns} turns", flush=True)
    figures = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for kind in arguments.formats:
            figures[kind] = measure(Path(folder), kind, arguments.rows, arguments.turns)
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    if not all(found["right"] for of_kind in figures.values() for found in of_kind.values()):
        raise SystemExit("A file is not in the promised order.")


if __name__ == "__main__":
    main()
