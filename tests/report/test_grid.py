"""Tables over models, sets and labels, efficiency and forgetting, as a report writes them."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lessonplan.evaluation.outcomes import Curve
from lessonplan.report import write_grid
from lessonplan.report.figures import NARROW, WIDE, png
from lessonplan.report.formats import Cell, Table, to_csv, to_latex, to_markdown
from lessonplan.report.grid_section import grid_section, grid_sentences
from lessonplan.report.grid_tables import exact
from lessonplan.report.progress_figures import efficiency_figure, forgetting_figure
from lessonplan.report.progress_section import (
    efficiency_sentences,
    forgetting_sentences,
    progress_section,
    unannealed,
)
from lessonplan.report.progress_tables import efficiency_table, forgetting_table
from lessonplan.report.write import report_tables
from lessonplan.statistics import analyse, grid

PAPER = Path(__file__).parents[2] / "docs" / "method" / "yang2024.csv"
EVIL = "<script>alert(1)</script>"
OPTIONS = [
    "--models", "tinyllama_1.1b,llama2_7b,llama2_13b,mistral_7b",
    "--evaluations", "lek,medmcqa,medqa",
    "--questions", "lek=874,medmcqa=4183,medqa=1273",
    "--chance", "lek=0.2,medmcqa=0.25,medqa=0.2",
    "--runs", "5",
]  # fmt: skip


def with_orders(outcome):
    """Add the categories that each run saw: blocked orders one after the other, others mixed."""
    rng = np.random.default_rng(4)
    taught = sorted(set(outcome.categories))
    pool = np.arange(320) % len(taught)
    shown = {
        arm: np.array(
            [
                np.sort(pool) if arm.startswith("blocked") else rng.permutation(pool)
                for _ in outcome.seeds
            ]
        )
        for arm in outcome.arms
    }
    part = np.arange(64)
    curves = {arm: Curve(c.seen, c.values, part) for arm, c in outcome.curves.items()}
    return replace(outcome, shown=shown, taught=taught, curves=curves)


@pytest.fixture
def analysis(record, outcome, under_sources):
    places = [("m_1", "icd"), ("m_1", "hpo"), ("low & $", "icd"), ("low & $", "hpo")]
    made = [
        with_orders(
            outcome(
                {"interleaved": 0.05}, model=m, evaluation=e, seed=i, n_questions=120,
                level=0.2 if m.startswith("low") else 0.55, before=0.2,
            )
        )
        for i, (m, e) in enumerate(places)
    ]  # fmt: skip
    return analyse(record([under_sources(made[0]), *made[1:]], orders=[], label_checks=[]))


def rows_of(table):
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def test_tables_of_a_study(analysis):
    tables = {t.name: t for t in report_tables(analysis)}
    assert {"grid_by_model", "grid_gains_by_evaluation", "grid_best", "grid_wins"} <= set(tables)
    assert {"efficiency", "forgetting"} <= set(tables)
    assert tables["grid_by_model"].heads == ["order", "m_1", "low & $ (floor)", "mean"]
    scores = {(r["column"], r["order"]): r["score"] for r in rows_of(tables["grid_by_model"])}
    own = [r.scores["random"].mean for r in analysis.results[:2]]
    assert float(scores["m_1", "random"]) == pytest.approx(np.mean(own))
    assert float(scores["mean", "random"]) == pytest.approx(np.mean(own))
    for table in tables.values():
        for row in (table.heads, *table.rows):
            assert len(row) == len(table.heads)
        assert all(len(record) == len(table.fields) for record in table.records)
        assert ",nan" not in to_csv(table)


def test_the_section_of_a_study(analysis):
    text = grid_section(analysis)
    assert "low &amp; $ on icd is at the floor" in text
    assert "The best of 5 orders gains" in text
    assert "<h2>Over models, sets and labels</h2>" in text
    assert grid_section(replace(analysis, grid=None)) == ""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_latex_compiles(analysis, tmp_path):
    evil = "\\ { } $ & # % _ ~ ^ < > | \" − – … “x” [y] 'z'"
    cells = [Cell(evil), Cell("[1]"), Cell("−1.5")]
    long = Table("long", evil, [evil, evil, evil], [cells] * 95, [], [])
    paper = grid(PAPER, models=OPTIONS[1].split(","), evaluations=OPTIONS[3].split(","), runs=5)
    write_grid(paper, tmp_path / "paper")
    files = [p.read_text() for p in (tmp_path / "paper").glob("*.tex")]
    body = "\\clearpage\n".join([*map(to_latex, [*report_tables(analysis), long]), *files])
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,graphicx}"
        f"\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "all.tex"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert said.returncode == 0, said.stdout[-2000:]
    assert "Overfull \\hbox" not in said.stdout
    assert "too large" not in said.stdout


def test_latex_is_balanced_and_cut_into_pages():
    rows = [[Cell(f"row {i}"), Cell("x" * (i % 90))] for i in range(95)]
    text = to_latex(Table("t", "All of it", ["a", "b"], rows, [], []))
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 3
    assert text.count("(continued)") == 2
    assert text.count("\\resizebox{\\textwidth}") == 3
    assert text.count("{") == text.count("}")
    assert [text.count(f"row {i} ") for i in (0, 40, 94)] == [1, 1, 1]
    assert "resizebox" not in to_latex(Table("t", "Small", ["a"], [[Cell("x")]], [], []))


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "lessonplan", "grid", str(PAPER), *OPTIONS]
    said = subprocess.run(
        [*command, "-o", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    for words in (
        "tinyllama_1.1b is at the floor",
        "+1.07 points on average over 3 evaluation sets with labels=llm",
        "+0.77 points on average over 3 models with labels=llm (+0.94 with those that are left",
        "curriculum in 5, interleaved in 4 and interleaved curriculum in 3",
    ):
        assert words in said
    names = {p.name for p in tmp_path.iterdir()}
    for table in ("grid_by_model", "grid_by_evaluation", "grid_best", "grid_wins", "grid_sources"):
        assert {f"{table}.{end}" for end in ("md", "csv", "tex")} <= names
    assert "+1.81" in (tmp_path / "grid_best.md").read_text()
    assert "<td" in (tmp_path / "index.html").read_text()
    bad = subprocess.run(
        [*command[:5], *OPTIONS[:4], "--chance", "lek"], capture_output=True, text=True
    )
    assert (bad.returncode, "--chance takes name=number" in bad.stderr) == (2, True)


def test_text_of_a_bare_table_is_escaped(tmp_path):
    rows = [(m, s, x) for m, x in ((EVIL, 0.5), ("=1+1", 0.4)) for s in ("random", EVIL)]
    table = dict(zip(("model", "strategy", "accuracy"), zip(*rows, strict=True), strict=True))
    text = write_grid(grid(table), tmp_path, title=EVIL).read_text()
    assert text.count("<script") == 1
    assert "<script" not in (tmp_path / "grid_by_model.md").read_text()
    assert "'=1+1" in (tmp_path / "grid_by_model.csv").read_text()


def test_numbers_with_two_decimals():
    assert exact(0.01066, "accuracy", sign=True) == "+1.07"
    assert exact(-0.0051, "accuracy", sign=True) == "−0.51"
    assert exact(-0.00001, "accuracy", sign=True) == "0.00"
    assert exact(0.4355, "accuracy") == "43.55"
    assert exact(float("nan"), "accuracy") == "–"
    assert exact(1.23456, "loss", sign=True) == "+1.235"


def test_what_a_schedule_means():
    assert "constant, so a checkpoint is" in unannealed({"schedule": "constant"})
    assert "decays (linear)" in unannealed({"schedule": "linear"})
    several = unannealed({"schedule (a)": "constant", "schedule (b)": "cosine"})
    assert "decays (cosine)" in several
    assert "unknown" in unannealed({})


def test_efficiency_and_forgetting_in_a_report(record, outcome):
    made = with_orders(outcome({"interleaved": 0.1}))
    whole = record([made], orders=[], label_checks=[], recipe={"schedule": "linear"})
    analysis = analyse(whole)
    fast = rows_of(efficiency_table(analysis.efficiency))
    assert [r["order"] for r in fast] == list(made.arms)
    assert fast[0]["gain"] == ""
    assert all(r["end"] == "320" for r in fast)
    recalls = rows_of(forgetting_table(analysis.forgetting))
    assert {"just seen", "long ago", "not yet seen"} <= {r["last_seen"] for r in recalls}
    text = progress_section(whole, analysis, {})
    for words in ("How fast it learns", "un-annealed", "What is forgotten", "5% of the run"):
        assert words in text
    assert "says nothing about orders" not in text
    low = replace(analysis, results=[replace(r, at_floor=True) for r in analysis.results])
    cautioned = progress_section(whole, low, {})
    assert cautioned.count(f"about orders where {made.place} is at the floor.") == 2
    assert efficiency_sentences(analysis.efficiency)[0].endswith(").")
    assert "long ago" in forgetting_sentences(analysis.forgetting)[0]
    for width in (WIDE, NARROW):
        assert png(efficiency_figure(analysis.efficiency, width)).startswith(b"\x89PNG")
        assert png(forgetting_figure(analysis.forgetting, width)).startswith(b"\x89PNG")
    empty = replace(analysis, efficiency=[], forgetting=[])
    assert progress_section(whole, empty, {}) == ""
    assert efficiency_figure([]) is None
    assert forgetting_figure([]) is None


def test_unreached_is_said(record, outcome):
    made = outcome(dict.fromkeys(("blocked", "curriculum"), -0.25), n_seeds=5)
    kept = ("random", "blocked", "curriculum")
    made = replace(
        made,
        arms={a: made.arms[a] for a in kept},
        curves={a: made.curves[a] for a in kept},
    )
    analysis = analyse(record([made], orders=[], label_checks=[]))
    assert "No other order reaches the final score of random." in efficiency_sentences(
        analysis.efficiency
    )
    assert "not reached" in to_markdown(efficiency_table(analysis.efficiency))


def test_sentences_of_a_grid_without_a_change():
    rows = [(m, s, x) for m in "ab" for s, x in (("random", 0.4), ("blocked", 0.5))]
    table = dict(zip(("model", "strategy", "accuracy"), zip(*rows, strict=True), strict=True))
    assert grid_sentences(grid(table))[-1] == "Blocked is the best in all 2 columns."
