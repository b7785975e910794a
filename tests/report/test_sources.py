"""The comparison of label sources in a report: what stands there, when, and that it is safe."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest

from lessonplan.report import write_report
from lessonplan.report.figures import NARROW, WIDE, png, svg
from lessonplan.report.maps import MOST_CATEGORIES, apart, map_figure
from lessonplan.report.source_section import agreement_sentence
from lessonplan.report.source_tables import strategy_words
from lessonplan.statistics import analyse
from lessonplan.statistics.sources import Agreement

EVIL = "<script>alert(1)</script>"
SVG = "{http://www.w3.org/2000/svg}"


def prose(path):
    """Return the text of a page without its figures and tags."""
    text = re.sub(r"<(svg|style|script).*?</\1>", "", path.read_text(), flags=re.S)
    return unescape(re.sub(r"<[^>]+>", " ", text))


def test_several_sources_are_compared(record, outcome, sources, under_sources, tmp_path):
    compared = under_sources(outcome(), lift=0.03, kinds=("difficulty", "category"))
    made = record([compared], orders=[], label_sources=sources(leak=True))
    page = write_report(made, tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    for table in ("label_agreement", "label_overlap", "label_leak", "label_gains"):
        assert {f"{table}.{end}" for end in ("md", "csv", "tex")} <= names
    assert {"map-1.svg", "map-1.png"} <= names
    assert "map-2.svg" not in names
    text = prose(page)
    for words in (
        "Which labels?",
        "Difficulty “llm” on icd10cm: probability of the right option, smollm2-135m, cloze (320 of",
        "The difficulties “human” and “llm” on icd10cm agree",
        "The categories “human” and “cluster” on icd10cm agree",
        "Averaged over the 3 strategies that ran under both sources of difficulty, “llm” stands",
        "Averaged over the 4 strategies that ran under both sources of category, “cluster” stands",
        "Of “llm” on icd10cm",
        "No sign of it in “human” on icd10cm",
        "coloured by the category “cluster” (HDBSCAN on UMAP)",
        "6 categories in terms of the other source",
    ):
        assert words in text
    gains = (tmp_path / "label_gains.csv").read_text()
    assert gains.count("\n") == 1 + 5 + 1 + 6 + 1
    assert "blocked_curriculum; interleaved_curriculum,yes" in gains


def test_single_sources_leave_the_leak_check(record, sources, tmp_path):
    first, _, third, fourth = sources()
    (tmp_path / "map-1.svg").write_text("of an older report")
    page = write_report(record(orders=[], label_sources=[first, third]), tmp_path)
    text = prose(page)
    assert "Which labels?" not in text
    assert "Does the difficulty give the answer's position away?" in text
    names = {p.name for p in tmp_path.iterdir()}
    assert "label_leak.csv" in names
    assert not [n for n in names if n.startswith(("label_agreement", "label_gains", "map-"))]
    write_report(record(orders=[], label_sources=[fourth]), tmp_path)
    assert "The questions on a map" in prose(page)
    assert "label_leak.csv" not in {p.name for p in tmp_path.iterdir()}
    write_report(record(orders=[]), tmp_path)
    assert "position away" not in prose(page)


def test_same_record_same_bytes(record, outcome, sources, under_sources, tmp_path):
    made = record([under_sources(outcome())], orders=[], label_sources=sources(700))
    first, second = write_report(made, tmp_path / "a"), write_report(made, tmp_path / "b")
    for path in first.parent.iterdir():
        assert path.read_bytes() == (second.parent / path.name).read_bytes(), path.name


def test_nothing_is_claimed_at_the_floor_or_from_two_seeds(
    record, outcome, sources, under_sources, tmp_path
):
    floor = under_sources(outcome(level=0.2, before=0.2))
    page = write_report(record([floor], orders=[], label_sources=sources()), tmp_path)
    assert "nothing is claimed: scores at the floor" in prose(page)
    assert "no claim: floor" in (tmp_path / "label_gains.md").read_text()
    few = under_sources(outcome(n_seeds=2))
    page = write_report(record([few], orders=[], label_sources=sources()), tmp_path)
    assert "in these runs alone: 2 seeds" in prose(page)
    assert "these runs alone" in (tmp_path / "label_gains.md").read_text()


def test_text_from_labels_is_escaped(record, outcome, sources, under_sources, tmp_path):
    made = under_sources(outcome())

    def renamed(held):
        return {arm.replace("=llm", f"={EVIL}"): entry for arm, entry in held.items()}

    for needs in made.sources.values():
        if needs.get("difficulty") == "llm":
            needs["difficulty"] = EVIL
    found = replace(
        made,
        arms=renamed(made.arms),
        strategies=renamed(made.strategies),
        sources=renamed(made.sources),
    )
    own = [
        replace(s, source=EVIL if s.source in ("llm", "cluster") else "=1+1", origin=EVIL)
        for s in sources()
    ]
    own[3].values[:] = [EVIL if v == own[3].values[1] else "$x$ & _" for v in own[3].values]
    page = write_report(record([found], orders=[], label_sources=own), tmp_path)
    text = page.read_text()
    assert text.count("<script") == 2  # what the page runs, and its data
    assert "alert(1)</script>" not in text
    for name in ("label_agreement", "label_leak", "label_gains", "label_overlap"):
        assert "<script" not in (tmp_path / f"{name}.md").read_text()
        assert not re.search(r"(^|,)[=@]", (tmp_path / f"{name}.csv").read_text(), re.M)
    assert r"\$x\$ \& \_" in (tmp_path / "label_overlap.tex").read_text()
    ElementTree.parse(tmp_path / "map-1.svg")
    assert "$x$ &amp; _" in (tmp_path / "map-1.svg").read_text()


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_many_points_are_an_image_and_few_are_not(sources, width):
    few = svg(map_figure(sources(300)[3], width))
    many = svg(map_figure(sources(5000, clusters=18)[3], width))
    assert "data:image/png" not in few
    assert many.count("data:image/png") == 1
    assert len(many) < 500_000
    words = [t.text for t in ElementTree.fromstring(many).iter(f"{SVG}text")]
    assert {str(i) for i in range(1, 19)} <= set(words)
    assert any(w.startswith("1  ") for w in words)
    assert "(no category) (200)" in words


def test_maps_of_odd_sources(sources):
    source = sources(300)[3]
    assert map_figure(replace(source, place=None)) is None
    assert map_figure(replace(source, values=[None] * 300)) is None
    assert map_figure(replace(source, place=np.full((300, 2), np.nan))) is None
    one_spot = replace(source, place=np.zeros((300, 2)))
    assert png(map_figure(one_spot)).startswith(b"\x89PNG")
    line = replace(source, place=np.stack([np.arange(300.0), np.zeros(300)], axis=1))
    assert png(map_figure(line)).startswith(b"\x89PNG")
    holes = replace(source, place=np.where(np.arange(300)[:, None] < 9, np.nan, source.place))
    assert png(map_figure(holes, NARROW)).startswith(b"\x89PNG")
    many = replace(source, values=[f"c{i % 40}" for i in range(300)])
    drawn = svg(map_figure(many))
    assert f"{40 - MOST_CATEGORIES} smaller categories" in drawn


def test_badges_do_not_touch():
    spots = np.zeros((20, 2))
    spots[10:] = np.random.default_rng(0).random((10, 2))
    moved = apart(spots, 0.3)
    gaps = np.sqrt(((moved[:, None] - moved[None]) ** 2).sum(axis=2))[~np.eye(20, dtype=bool)]
    assert gaps.min() > 0.27
    far = np.array([[0.0, 0.0], [5.0, 5.0]])
    assert np.abs(apart(far, 0.3) - far).max() < 1e-3


def test_agreement_in_words():
    nan = float("nan")

    def said(kind, value, low=nan, high=nan, luck=nan):
        made = Agreement("t", kind, "human", "llm", value, low, high, 0.0, luck, 300, (5, 300))
        return agreement_sentence(made)

    assert said("difficulty", 0.17, 0.06, 0.27) == (
        "The difficulties “human” and “llm” on t agree weakly: rank correlation 0.17 "
        "(95% interval 0.06 to 0.27)."
    )
    assert "no agreement that luck cannot explain" in said("difficulty", 0.05, -0.06, 0.16)
    assert "contradict each other" in said("difficulty", -0.3, -0.4, -0.2)
    assert "agree moderately" in said("difficulty", 0.54, 0.5, 0.6)
    assert "agree closely" in said("category", 0.9, luck=0.02)
    assert "no agreement" in said("category", 0.01, luck=0.02)
    assert "cannot be compared" in said("category", nan)


def test_lines_of_one_strategy_under_two_sources_of_the_other_label(outcome, under_sources, record):
    made = under_sources(outcome(), kinds=("difficulty", "category"))
    kept = {a: v for a, v in made.arms.items() if a == "random" or a.startswith("blocked_")}
    found = analyse(record([replace(made, arms=kept)])).source_gains
    names = [strategy_words(g) for g in found if g.kind == "difficulty"]
    assert names == [
        "blocked curriculum [category=human]",
        "blocked curriculum [category=cluster]",
        "average of blocked curriculum",
    ]
