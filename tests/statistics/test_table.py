"""`compare`: tables of every kind, and every kind of bad table."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lessonplan.errors import InputError
from lessonplan.statistics import compare


def frame(seeds=3, questions=30, arms=("random", "blocked"), seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        [
            (f"q{q}", arm, s, int(rng.random() < 0.6))
            for arm in arms
            for s in range(seeds)
            for q in range(questions)
        ],
        columns=["id", "arm", "seed", "correct"],
    )


def test_all_kinds_of_table_agree(tmp_path):
    table = frame()
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    pq.write_table(pa.Table.from_pandas(table), tmp_path / "t.parquet")
    table.to_json(tmp_path / "t.json", orient="records")
    words = table.assign(correct=table["correct"].astype(bool), seed=table["seed"].astype(float))
    words.to_csv(tmp_path / "words.csv", index=False)  # True and False, 0.0 and 1.0
    half = len(table) // 2
    table[:half].to_csv(tmp_path / "a.csv", index=False)
    table[half:].to_csv(tmp_path / "b.csv", index=False)
    kinds = [
        table,
        pa.Table.from_pandas(table),
        {name: list(table[name]) for name in table},
        {name: table[name].to_numpy() for name in table},
        tmp_path / "t.csv",
        str(tmp_path / "t.jsonl"),
        tmp_path / "t.parquet",
        [tmp_path / "a.csv", tmp_path / "b.csv"],
        table.sample(frac=1, random_state=1),
        table.assign(correct=table["correct"].astype(bool)),
        tmp_path / "words.csv",
        tmp_path / "t.json",
    ]
    found = [compare(kind).analysis.results[0].gains[0].estimate for kind in kinds]
    wide = table.pivot_table(index="seed", columns=["arm", "id"], values="correct")
    expected = wide["blocked"].mean().mean() - wide["random"].mean().mean()
    for estimate in found:
        assert estimate.mean == pytest.approx(expected)
        assert estimate.low == pytest.approx(found[0].low)


def test_it_prints_a_table_and_the_verdict():
    text = str(compare(frame(arms=("random", "blocked_curriculum", "[red]mine"))))
    assert "blocked curriculum" in text
    assert "[red]mine" in text
    assert "baseline" in text
    assert "No difference from the random shuffle was found" in " ".join(text.split())


def test_models_and_evaluations_are_kept_apart():
    tables = [frame(seed=i).assign(model=f"m{i // 2}", evaluation=f"e{i % 2}") for i in range(4)]
    found = compare(pd.concat(tables))
    assert [(o.model, o.evaluation) for o in found.record.outcomes] == [
        ("m0", "e0"), ("m0", "e1"), ("m1", "e0"), ("m1", "e1"),
    ]  # fmt: skip
    assert found.analysis.family == 4
    assert "m1 on e1" in str(found)


def test_real_values_and_named_columns():
    table = frame().rename(columns={"correct": "value"})
    table["value"] = table["value"] * 3.7 - 9
    plain = compare(table)
    assert plain.record.outcomes[0].metric == "value"
    theirs = {"id": "question_id", "arm": "method", "seed": "run", "value": "reward"}
    named = table.rename(columns=theirs).assign(correct="a column of no use here")
    found = compare(named, columns=theirs)
    assert found.record.outcomes[0].metric == "reward"
    (of_found,), (of_plain,) = found.analysis.results, plain.analysis.results
    assert [gain.estimate for gain in of_found.gains] == [gain.estimate for gain in of_plain.gains]
    truth = frame().rename(columns={"correct": "hit"})
    assert str(compare(truth, columns={"correct": "hit"})) == str(compare(frame()))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": "id"}, "'question' is no column that is read here; those are id, arm, seed"),
        ({"arm": "method"}, "no column 'method'; the columns are id, arm, seed, correct"),
        ({"correct": "correct", "value": "id"}, "correct and value are two scores; name the one"),
        ({"correct": "seed"}, "row 61: seed is 2, expected true or false, 0 or 1"),
    ],
)
def test_columns_that_cannot_be(columns, message):
    with pytest.raises(InputError, match=message):
        compare(frame(), columns=columns)


def test_seeds_of_one_arm_only_are_said():
    table = frame(seeds=4)
    table = table[~((table.arm == "blocked") & (table.seed == 3))]
    table = table[~((table.arm == "random") & (table.seed == 0))]
    found = compare(table)
    assert found.analysis.results[0].gains[0].estimate.seeds == 2
    assert "seed 0 has no run of random" in str(found)
    assert "seed 3 is missing" in str(found)


def test_another_baseline():
    found = compare(frame(arms=("plain", "mine")), baseline="plain")
    assert "plain" in str(found)
    assert found.record.outcomes[0].baseline == "plain"


def edited(change):
    table = frame()
    return change(table)


BAD = {
    "no score": (lambda t: t.rename(columns={"correct": "corect"}), "Did you mean 'corect'"),
    "no arm": (lambda t: t.rename(columns={"arm": "arms"}), "no column 'arm'.*Did you mean 'arms'"),
    "twice": (lambda t: pd.concat([t, t[:1]]), "more than once"),
    "no baseline": (lambda t: t[t.arm != "random"], "no arm is named 'random'"),
    "baseline alone": (lambda t: t[t.arm == "random"], "only arm"),
    "other ids": (lambda t: t[1:-1], "lacks 1 of the 30 question ids"),
    "NaN": (lambda t: t.assign(correct=[np.nan, *t.correct[1:]]), "row 1: correct is nan"),
    "two": (lambda t: t.assign(correct=[2, *t.correct[1:]]), "correct is 2, expected"),
    "text": (lambda t: t.assign(correct=["yes", *t.correct[1:]]), "'yes', expected true or false"),
    "one question": (lambda t: t[t.id == "q0"], "a single question"),
    "seed": (lambda t: t.assign(seed=t.seed + 0.5), "not a whole number"),
    "empty arm": (lambda t: t.assign(arm=[None, *t.arm[1:]]), "row 1: column 'arm' is empty"),
    "no rows": (lambda t: t[:0], "no rows"),
    "no shared seed": (lambda t: t.assign(seed=t.seed + 10 * (t.arm == "blocked")), "no seed with"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables(case):
    change, message = BAD[case]
    with pytest.raises(InputError, match=message):
        compare(change(frame()))


def test_a_row_of_several_files_is_named_by_its_file_and_line(tmp_path):
    """Messages of 18 files do not name them all, nor count rows over all of them."""
    table = frame()
    paths = []
    for (arm, seed), run in table.groupby(["arm", "seed"]):
        paths.append(tmp_path / f"{arm}{seed}.csv")
        run.to_csv(paths[-1], index=False)
    again = table[(table.arm == "random") & (table.seed == 1)]

    def message(run):
        run.to_csv(paths[-1], index=False)
        with pytest.raises(InputError) as caught:
            compare(paths)
        return str(caught.value)

    assert "random2.csv, line 3: correct is ''" in message(
        again.assign(correct=[1, None] + [0] * 28)
    )
    twice = message(again)
    assert "random2.csv, line 2: arm 'random', seed 1 has question 'q0' more than once" in twice
    assert f"first in {paths[-2]}, line 2" in twice
    assert "blocked2.csv and 3 more, arm" not in twice
    with pytest.raises(InputError, match=r"blocked2\.csv and 3 more: no arm is named 'plain'"):
        compare(paths, baseline="plain")


def test_ids_stay_as_they_are_written(tmp_path):
    table = frame().assign(id=[f"{q:03}" for q in range(30)] * 6)
    table.to_csv(tmp_path / "t.csv", index=False)
    assert compare(tmp_path / "t.csv").record.outcomes[0].ids[1] == "001"


def test_baseline_missing_from_one_part():
    table = pd.concat([frame().assign(model="a"), frame(arms=("x", "y")).assign(model="b")])
    with pytest.raises(InputError, match=r", b: has no rows of the baseline"):
        compare(table)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        compare(tmp_path / "none.csv")
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(InputError, match="the format is told by the extension"):
        compare(tmp_path / "t.xlsx")
    (tmp_path / "t.jsonl").write_text('{"id": 1')
    with pytest.raises(InputError, match="not valid JSON"):
        compare(tmp_path / "t.jsonl")
    (tmp_path / "e.csv").write_text("")
    with pytest.raises(InputError, match=r"e\.csv: there are no rows"):
        compare(tmp_path / "e.csv")
    with pytest.raises(InputError, match="cannot compare a int"):
        compare(3)
    with pytest.raises(InputError, match="differ in length"):
        compare({"id": [1, 2], "arm": ["a"]})


def test_importing_the_statistics_loads_nothing_heavy():
    code = (
        "import sys, json, lessonplan.statistics, lessonplan.report;"
        "print(json.dumps([m for m in ('scipy', 'statsmodels', 'matplotlib', 'pandas', 'pyarrow', "
        "'torch', 'rich') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []
