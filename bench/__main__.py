"""All comparisons in one process: a Markdown table, and every figure in a JSON file.

Arms take turns, and a ratio is the median of the ratios turn by turn. The arms' results are
compared, too; the command fails where they disagree. Peak memory is that of a whole
process that does an arm's work alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = (
    "tune_all",
    "tune_top_study",
    "tune_top_single",
    "score_cloze",
    "score_letter",
    "order_10m",
)
PACKAGES = ("torch", "transformers", "peft", "trl", "lm_eval", "numpy", "pandas")


def order_10m(rows: int, repeats: int) -> dict[str, Any]:
    """Return the comparison of ordering, all kinds of columns and strategies together."""
    from bench import orders

    found = orders.measure(rows, repeats)
    cases = [case for by_strategy in found.values() for case in by_strategy.values()]

    def total(arm: str) -> dict[str, Any]:
        least, most = zip(*(case[arm]["range"] for case in cases), strict=True)
        seconds = sum(case[arm]["seconds"] for case in cases)
        return {"median": seconds, "range": [sum(least), sum(most)], "unit": "s"}

    each = [case["ratio"] for case in cases]
    apart = sum(not case["agreement"] for case in cases)
    return {
        "what": f"ordering {rows:,} questions: {len(cases)} orders, one after the other",
        "ours": total("ours"),
        "peer": total("peer") | {"name": "pandas"},
        "ratio": {"median": statistics.median(each), "range": [min(each), max(each)]},
        "agreement": {
            "compared": "the orders, row for row; the difference is the share that differs",
            "largest_difference": apart / len(cases),
            "limit": 0,
            "ok": apart == 0,
        },
        "peak_memory_mib": {
            arm: max(case[arm]["peak_bytes"] for case in cases) / 2**20 for arm in ("ours", "peer")
        },
        "by_column_and_strategy": found,
    }


def environment(threads: int) -> dict[str, Any]:
    cpu = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def table(results: dict[str, Any]) -> str:
    lines = [
        "| | lessonplan (s) | peer (s) | peer / lessonplan | largest difference (limit) "
        "| peak memory (MiB) | peer |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]

    def spread(found: dict[str, Any]) -> str:
        return f"{found['median']:.2f} ({found['range'][0]:.2f} to {found['range'][1]:.2f})"

    for found in results.values():
        agreed, memory = found["agreement"], found["peak_memory_mib"]
        cells = [
            found["what"],
            spread(found["ours"]),
            spread(found["peer"]),
            f"**{spread(found['ratio'])}**",
            f"{agreed['largest_difference']:.1e} ({agreed['limit']:.0e})"
            + ("" if agreed["ok"] else " DISAGREE"),
            f"{memory['ours']:,.0f} / {memory['peer']:,.0f}",
            found["peer"]["name"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
        if "peer_compact" in found:
            cells = [
                "the same",
                "",
                spread(found["peer_compact"]),
                spread(found["ratio_compact"]),
                f"{agreed['largest_difference_peer_compact']:.1e}",
                "",
                found["peer_compact"]["name"],
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def roofline_lines(rooflines: dict[str, Any]) -> str:
    lines = []
    for name, roof in rooflines.items():
        arms = "; ".join(
            f"{arm} {roof[arm]['gflop']:,.0f} GFLOP at {roof[arm]['gflops']:.0f} GFLOP/s, "
            f"{roof[arm]['share']['median']:.0%} of the faster"
            for arm in ("ours", "lower", "peer")
            if arm in roof
        )
        ways = ", ".join(
            f"{rate['median']:.0f} by {way}" for way, rate in roof["gflops_by_way"].items()
        )
        lines.append(
            f"- {name}: the layers' products alone, of {roof['tokens_in_a_product']} tokens each, "
            f"run at {ways} (GFLOP/s); {arms}"
        )
    return "\n".join(lines)


def run(
    names: Sequence[str], n: int, alternations: int, threads: int, rows: int, out: Path
) -> dict[str, Any]:
    """Measure, and write after each part what is known, so that what fails costs no other part."""
    found: dict[str, Any] = {}
    rooflines: dict[str, Any] = {}
    started = time.perf_counter()

    def written() -> dict[str, Any]:
        figures = {
            "environment": environment(threads),
            "alternations": alternations,
            **{name: found[name] for name in names if name in found},
            "roofline": rooflines,
            "minutes": (time.perf_counter() - started) / 60,
        }
        out.write_text(json.dumps(figures, indent=2) + "\n")
        return figures

    if any(name.startswith("tune") for name in names):
        from bench import tuning

        found, rooflines = tuning.measure(n, alternations, threads, names)
        written()
    if any(name.startswith("score") for name in names):
        from bench import scoring

        scored, roofs = scoring.measure(n, alternations, threads, names)
        found, rooflines = found | scored, rooflines | roofs
        written()
    if "order_10m" in names:
        print("order_10m", file=sys.stderr, flush=True)
        found["order_10m"] = order_10m(rows, min(alternations, 3))
    return written()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--questions", type=int, default=160)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of order_10m")
    parser.add_argument("--quick", action="store_true", help="16 questions, one turn: a smoke test")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    a = parser.parse_args()
    n, alternations, rows = (16, 1, 100_000) if a.quick else (a.questions, a.alternations, a.rows)
    names = [name for name in NAMES if name in a.only]
    figures = run(names, n, alternations, a.threads, rows, a.out)

    results = {name: figures[name] for name in names}
    machine = figures["environment"]
    print(f"{n} questions, {a.threads} threads, median (range) of {alternations} turns;")
    print(f"{machine['cpu']}, {machine['cores']} cores; ", end="")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    print(f"\n{table(results)}\n")
    print("Seconds for all questions; peak memory of a whole process with Python and libraries")
    print("(of orders: what one call adds). Loading and tokenising are left out for both.\n")
    print(roofline_lines(figures["roofline"]))
    print(f"\n{figures['minutes']:.0f} minutes. All figures: {a.out.name}")
    if not all(found["agreement"]["ok"] for found in results.values()):
        raise SystemExit("The arms disagree, so the times mean nothing.")


if __name__ == "__main__":
    main()
