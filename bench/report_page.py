"""How long the report of a big study takes to open: 100 runs over 5,000 questions by default.

Prints a Markdown table. Seconds run from the request of the file until the list of questions
stands, in a headless Chromium and a fresh tab for each turn; the longest of the turns stands beside
their median. The answers are made up; the questions are as long as those of MedQA (about 700
characters and five options).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from lessonplan.evaluation.outcomes import Curve, Outcome, Record
from lessonplan.report import write_report

ARMS = ("random", "blocked", "interleaved", "curriculum", "blocked_curriculum")
CHROMIUM = "/usr/bin/chromium"
WORDS = ("the", "of", "in", "patient", "with", "most", "likely", "diagnosis", "acute", "pain")


def made_up(runs: int, questions: int) -> Record:
    """Return a record of so many runs in five arms; hard questions are hard for every run."""
    rng = np.random.default_rng(0)
    n_seeds = -(-runs // len(ARMS))
    easiness = rng.random(questions)
    arms = {a: (rng.random((n_seeds, questions)) < easiness).astype(float) for a in ARMS}
    seen = np.array([0, 1000, 2000, 3000])
    part = slice(0, 200)
    curves = {
        arm: Curve(seen, np.stack([values[:, part]] * len(seen), axis=1))
        for arm, values in arms.items()
    }
    pool = [" ".join(rng.choice(WORDS, size=size)) for size in rng.integers(90, 150, size=1000)]
    outcome = Outcome(
        model="model",
        evaluation="test",
        seeds=list(range(n_seeds)),
        ids=[f"q{i:05}" for i in range(questions)],
        arms=arms,
        strategies={arm: arm for arm in ARMS},
        sources={arm: {} for arm in ARMS},
        questions=[f"{pool[k]}?" for k in rng.integers(len(pool), size=questions)],
        options=[[f"option {k} of question {i}" for k in range(5)] for i in range(questions)],
        answers=rng.integers(5, size=questions),
        n_options=np.full(questions, 5),
        categories=[f"category {c:02}" for c in rng.integers(20, size=questions)],
        curves=curves,
    )
    return Record(f"{n_seeds * len(ARMS)} runs over {questions:,} questions", [outcome])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--questions", type=int, default=5000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--chromium", default=CHROMIUM, help="path of the browser")
    chosen = parser.parse_args()

    from playwright.sync_api import sync_playwright

    record = made_up(chosen.runs, chosen.questions)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        page_file = write_report(record, Path(folder))
        browser = p.chromium.launch(
            executable_path=chosen.chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        taken = []
        for _ in range(chosen.turns):
            page = browser.new_page()
            start = time.perf_counter()
            page.goto(page_file.as_uri())
            page.locator("#drill-list > li").first.wait_for()
            taken.append(time.perf_counter() - start)
            elements = page.locator("*").count()
            page.close()
        browser.close()
        size = page_file.stat().st_size / 1e6
    print("| page | size | elements | opens in, median | longest |\n|:--|--:|--:|--:|--:|")
    print(
        f"| {record.title} | {size:.1f} MB | {elements:,} | {statistics.median(taken):.2f} s "
        f"| {max(taken):.2f} s |"
    )


if __name__ == "__main__":
    main()
