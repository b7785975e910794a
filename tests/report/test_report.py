"""The report: what it says, that it is safe, self-contained and the same each time."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from lessonplan.report import write_report
from lessonplan.report.figures import arm_label
from lessonplan.report.formats import Cell, Table, to_csv, to_html, to_latex, to_markdown
from lessonplan.statistics import analyse, compare, verdict

EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """Collect the tags and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.opened.append((tag, dict(attrs)))


def scripts(text: str) -> list[str]:
    """Return the types of the script elements; a data block runs nothing."""
    return sorted(a.get("type") or "" for tag, a in Tags(text).opened if tag == "script")


def test_everything_is_written(record, tmp_path):
    page = write_report(record(), tmp_path / "report")
    assert page == tmp_path / "report" / "index.html"
    names = {p.name for p in page.parent.iterdir()}
    for table in ("accuracy", "gains", "best", "by_category", "by_answer", "labels", "pairs"):
        assert {f"{table}.{end}" for end in ("md", "csv", "tex")} <= names
    for figure in ("gains", "curves", "orders"):
        assert {f"{figure}.svg", f"{figure}.png"} <= names
    assert not [n for n in names if n.startswith(".")]
    text = page.read_text()
    for heading in (
        "Accuracy and gain",
        "Learning curves",
        "By category",
        "Question by question",
        "Answers seen and not seen",
        "What the model saw when",
        "Does the model notice the difficulty?",
        "Learning rate received",
        "Notes on the data",
        "Recipe, versions and method",
    ):
        assert heading in text
    assert "different versions of transformers" in text
    assert (page.parent / "gains.png").read_bytes().startswith(b"\x89PNG")


def test_same_record_same_bytes_and_old_files_go(record, tmp_path):
    made = record()
    folder = write_report(made, tmp_path / "a").parent
    (folder / "orders-2.svg").write_text("of an older study")
    (folder / "mine.txt").write_text("not the report's")
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    write_report(record(), folder)
    second = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert "orders-2.svg" not in second
    first.pop("orders-2.svg", None)
    assert first == second
    assert "mine.txt" in second


def test_interrupted_report_leaves_the_old_page(record, outcome, tmp_path, monkeypatch):
    import os

    page = write_report(record(orders=[]), tmp_path)
    before = page.read_bytes()

    def stop(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_report(record([outcome(n_seeds=2)], orders=[]), tmp_path)
    assert page.read_bytes() == before
    assert not list(tmp_path.glob(".writing-*"))


def test_page_is_self_contained(record, tmp_path):
    text = write_report(record(), tmp_path).read_text()
    for tag, attributes in Tags(text).opened:
        for name in ("src", "href", "xlink:href", "data", "action"):
            target = attributes.get(name) or ""
            assert target.startswith(("#", "data:")) or target == "", (tag, target)
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?(https?:)?//", text)
    ids = [a["id"] for _, a in Tags(text).opened if a.get("id")]
    assert len(ids) == len(set(ids))


def test_text_from_data_is_escaped(record, outcome, tmp_path):
    made = outcome()
    made.categories[:] = [EVIL if c == made.categories[0] else c for c in made.categories]
    made.questions[0] = made.options[0][0] = made.ids[0] = EVIL
    evil = record(
        [made],
        title=EVIL,
        notes=[EVIL],
        failures=[EVIL],
        config=EVIL,
        recipe={EVIL: EVIL},
        versions={EVIL: [EVIL, "2"]},
        machine=EVIL,
        runs_planned=19,
    )
    for picture in evil.orders:
        picture.categories[:] = [EVIL] * len(picture.categories)
    text = write_report(evil, tmp_path).read_text()
    assert scripts(text) == ["", "application/json"]
    assert "alert(1)</script>" not in text.replace("&lt;/script&gt;", "")
    assert "<script" not in (tmp_path / "by_category.md").read_text()


def test_arm_names_of_a_table_are_escaped_everywhere(tmp_path):
    rng = np.random.default_rng(0)
    names = ["random", EVIL, "=1+1", "a|b_c$x$ & 100%"]
    rows = [
        (f"q{q}", a, s, int(rng.random() < 0.5)) for a in names for s in range(3) for q in range(20)
    ]
    table = dict(zip(("id", "arm", "seed", "correct"), zip(*rows, strict=True), strict=True))
    page = write_report(compare(table, title=EVIL), tmp_path)
    assert scripts(page.read_text()) == ["", "application/json"]
    assert "What the model saw" not in page.read_text()
    assert ",'=1+1," in (tmp_path / "gains.csv").read_text()
    assert r"a\|b" in (tmp_path / "gains.md").read_text()
    assert r"b\_c\$x\$ \& 100\%" in (tmp_path / "gains.tex").read_text()


def test_formats():
    cells = [Cell("[x] −1 & <b>", "x"), Cell("1.5", 1.5, tint=0.5)]
    table = Table(
        "t", "50% of it", ["a_b", "n"], [cells], ["a", "n"], [["@x", -1.5], ["\tx", None]]
    )
    assert to_csv(table) == "a,n\n'@x,-1.5\n'\tx,\n"
    assert r"{}[x] $-$1 \& \textless{}b\textgreater{} & {}1.5 \\" in to_latex(table)
    assert r"50\% of it" in to_latex(table)
    assert r"| \[x\] −1 &amp; &lt;b&gt; | 1.5 |" in to_markdown(table)
    assert 'data-key="1.5"' in to_html(table)
    assert "&lt;b&gt;" in to_html(table)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("winner", {"gains": {"interleaved": 0.15}}, "Interleaved beat the random shuffle by"),
        ("no difference", {}, "found that luck cannot explain"),
        ("too few seeds", {"n_seeds": 2}, "run with 2 seeds, and at least 3"),
        ("too few seeds", {"n_seeds": 1}, "run with one seed, and at least 3"),
        ("floor", {"level": 0.2, "before": 0.2}, "the model cannot be told from the floor"),
        ("ceiling", {"level": 1.0}, "cannot be told from all"),
    ],
)
def test_verdicts(record, outcome, kind, fields, words):
    made = record([outcome(**fields)])
    said = verdict(made, analyse(made))
    assert said.kind == kind
    assert words in said.sentences[0]
    assert len(said.sentences) == 2
    assert said.caveats == ()


def test_captions_say_that_two_seeds_speak_of_these_runs_alone(record, outcome, tmp_path):
    for seeds, told in ((2, True), (3, False)):
        folder = write_report(record([outcome(n_seeds=seeds)]), tmp_path / str(seeds)).parent
        for name in ("accuracy.md", "gains.md", "index.html"):
            text = (folder / name).read_text(encoding="utf-8")
            assert ("intervals and p speak of these runs alone" in text) == told, name


def test_caveats(record, check):
    made = record(label_checks=[check(0.0)], runs_done=15, failures=["curriculum, seed 2: killed"],
                  unfinished=["blocked, seed 1"], to_do=["random, seed 1"])  # fmt: skip
    said = " ".join(verdict(made, analyse(made)).caveats)
    assert "15 of 18 planned runs" in said
    assert "1 run failed; the report lists the reasons." in said
    assert "1 run begun and not finished" in said
    assert "1 run still to be done" in said
    assert "The difficulty “human” was not shown to predict the loss" in said
    made = record(label_checks=[check(-0.8)])
    said = " ".join(verdict(made, analyse(made)).caveats)
    assert "The difficulty “human” goes against the loss of the untuned" in said
    assert "hard to easy here" in said


def test_verdict_of_a_study_of_several(record, outcome, tmp_path):
    made = record(
        [
            outcome({"interleaved": 0.15}),
            outcome(evaluation="medqa", level=0.2, before=0.2),
            outcome(model="gemma3-270m"),
        ],
        orders=[],
    )
    said = verdict(made, analyse(made))
    assert said.kind == "winner"
    assert "for smollm2-135m on icd10cm" in said.sentences[0]
    assert "smollm2-135m on medqa (floor)" in said.sentences[1]
    text = write_report(made, tmp_path).read_text()
    heads = [a["id"] for t, a in Tags(text).opened if t == "h2"]
    assert heads[:3] == ["result-0", "result-1", "result-2"]
    links = [a["href"] for t, a in Tags(text).opened if t == "a"]
    assert links[-len(heads) :] == [f"#{head}" for head in heads]


def test_missing_runs_are_gaps(record, outcome, tmp_path):
    made = outcome()
    made.arms["curriculum"][:] = np.nan
    made.arms["blocked"][1] = np.nan
    made.curves["curriculum"].values[:] = np.nan
    made.curves["blocked"].values[1] = np.nan
    text = write_report(record([made], orders=[]), tmp_path).read_text()
    assert "no run to compare" in text
    assert "blocked: seed 2 is missing" in text
    assert "no runs" in (tmp_path / "gains.csv").read_text()
    assert "nan" not in (tmp_path / "gains.csv").read_text()


def test_empty_record(record, tmp_path):
    empty = record(orders=[], label_checks=[])
    empty.outcomes.clear()
    assert "there are no results" in write_report(empty, tmp_path).read_text()


@pytest.mark.parametrize(
    ("arm", "length", "label"),
    [
        ("blocked_curriculum", 30, "blocked curriculum"),
        ("curriculum [difficulty=llm]", 30, "curriculum [difficulty=llm]"),
        ("curriculum [difficulty=llm]", 20, "curriculum [llm]"),
        ("interleaved_curriculum [difficulty=llm]", 23, "interleaved curr… [llm]"),
        ("a very long name of an arm", 12, "a very long…"),
    ],
)
def test_a_short_label_keeps_the_sources(arm, length, label):
    assert arm_label(arm, length) == label
