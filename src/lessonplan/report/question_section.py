"""Question by question: which ones an order gets right and another wrong, as the page's data.

The page's script (page.js) reads the data and shows a few questions at a time, so that a page of
hundreds of runs over thousands of questions opens at once.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import Outcome
from lessonplan.report.tables import UNTUNED
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.family import judged
from lessonplan.statistics.labels import UNLABELLED
from lessonplan.statistics.result import ACCURACY, Result
from lessonplan.statistics.verdict import spoken

FloatArray = NDArray[np.float64]
LONGEST = 4000
"""Characters of a question's text that the page carries; longer ones lose their middle."""

SHELL = """<section id="questions" aria-labelledby="question-by-question">
<h2 id="question-by-question">Question by question</h2>
<p>Which questions does one order get right and another wrong? Choose two orders; both are compared
under the same seeds.</p>
<p id="drill-without">This part needs JavaScript.</p>
<div id="drill" hidden>
<div class="controls">
<div class="long"><label for="drill-place">Comparison</label>
<select id="drill-place"></select></div>
<div><label for="drill-first">Order</label>
<select id="drill-first"></select></div>
<div><label for="drill-second">against</label>
<select id="drill-second"></select></div>
</div>
<div id="drill-tally"></div>
<div class="controls">
<div><label for="drill-show">Show</label>
<select id="drill-show"></select></div>
<div><label for="drill-sort">Sorted by</label>
<select id="drill-sort"></select></div>
<div class="long"><label for="drill-search">Search</label>
<input id="drill-search" type="search" autocomplete="off"
placeholder="words in question, options or category"></div>
</div>
<p id="drill-status" role="status"></p>
<ol id="drill-list"></ol>
<div class="pager"><button type="button" id="drill-back">Previous</button>
<button type="button" id="drill-next">Next</button></div>
</div>
"""


def questions_section(analysis: Analysis) -> str:
    """Return the section with its data, "" where nothing was run."""
    results = [r for r in analysis.results if r.scores]
    if not results:
        return ""
    # "<" would let a question's text end the script element.
    data = json.dumps(questions_data(results), ensure_ascii=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c")
    return f'{SHELL}<script type="application/json" id="drill-data">{data}</script></section>'


def questions_data(results: list[Result]) -> dict[str, Any]:
    """Return what the script needs: each set of questions once, and the comparisons over them.

    Returns:
        ``sets``: for each set its ``ids`` and, where known, ``questions``, ``options``,
        ``answers`` (index of the right option) and ``categories``, each of length Q.
        ``comparisons``: ``place`` in words, the number of its ``set``, ``accuracy`` (else the
        metric is a real score), ``bits`` (each answer is right or wrong; the mean over folds'
        models is neither), ``seeds``, and its ``arms``, of which ``first`` and ``second``
        are compared to begin with. An arm has ``runs``, one entry a seed: the Q answers as bits
        (1 right, highest bit first, base64), else as little-endian float32 (base64), or
        null for a missing run. The arm named ``untuned`` has one entry for all seeds.
    """
    sets: list[dict[str, Any]] = []
    comparisons = []
    for result in results:
        outcome = result.outcome
        texts = _texts(outcome)
        if texts not in sets:
            sets.append(texts)
        names = [arm for arm in outcome.arms if arm in result.scores]
        kept = judged(outcome)
        bits = outcome.metric == ACCURACY and all(
            bool(np.isin(values[~np.isnan(values)], (0, 1)).all())
            for values in outcome.arms.values()
        )
        arms = [
            {"name": spoken(arm), "runs": [_packed(run[kept], bits) for run in outcome.arms[arm]]}
            for arm in names
        ]
        if result.untuned is not None and outcome.untuned is not None:
            arms.append({"name": UNTUNED, "runs": [_packed(outcome.untuned[kept], bits)]})
        second = names.index(outcome.baseline) if outcome.baseline in names else 0
        ranked = sorted(
            (i for i in range(len(names)) if i != second),
            key=lambda i: -result.scores[names[i]].mean,
        )
        comparisons.append(
            {
                "place": result.outcome.place,
                "set": sets.index(texts),
                "accuracy": outcome.metric == ACCURACY,
                "bits": bits,
                "seeds": outcome.seeds,
                "arms": arms,
                "first": ranked[0] if ranked else second,
                "second": second,
            }
        )
    return {"sets": sets, "comparisons": comparisons, "untuned": UNTUNED}


def _packed(run: FloatArray, bits: bool) -> str | None:
    if np.isnan(run).any():
        return None
    data = np.packbits(run > 0.5) if bits else run.astype("<f4")
    return base64.b64encode(data.tobytes()).decode()


def _texts(outcome: Outcome) -> dict[str, Any]:
    kept = np.flatnonzero(judged(outcome))
    found: dict[str, Any] = {"ids": [outcome.ids[i] for i in kept]}
    if outcome.questions is not None:
        found["questions"] = [_cut(outcome.questions[i]) for i in kept]
    if outcome.options is not None:
        found["options"] = [[_cut(text) for text in outcome.options[i]] for i in kept]
    if outcome.answers is not None:
        found["answers"] = outcome.answers[kept].tolist()
    if outcome.categories is not None:
        found["categories"] = [outcome.categories[i] or UNLABELLED for i in kept]
    return found


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return text[: LONGEST // 2].rstrip() + " … " + text[-LONGEST // 2 :].lstrip()
