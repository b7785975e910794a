"""The page in a browser: sorted, pointed at, searched, walked through by keyboard, printed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lessonplan.report import write_report
from lessonplan.report.page import page as page_text
from lessonplan.statistics import analyse, compare
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.verdict import signed

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
EVIL = "<img src=x onerror=\"document.title='hit'\"></script><b>x</b>"

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright")
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def study(record, outcome):
    """A study of one comparison with a missing run, a question judged apart, and hostile text."""
    made = outcome({"interleaved": 0.12, "blocked": -0.03})
    made.arms["blocked"][1] = np.nan
    made.questions[3] = EVIL
    made.options[3][0] = EVIL
    apart = np.zeros(200, dtype=bool)
    apart[5:8] = True
    made = replace(made, meaningless=apart)
    whole = record([made], failures=["blocked, seed 2: killed"], runs_done=17)
    return whole, analyse(whole)


@pytest.fixture(scope="module")
def report(study, tmp_path_factory) -> Path:
    return write_report(study[0], tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def several(record, outcome, tmp_path_factory) -> Path:
    outcomes = [outcome({"blocked": 0.1 * i}, evaluation=f"set {i}", seed=i) for i in range(2)]
    return write_report(record(outcomes, orders=[]), tmp_path_factory.mktemp("several"))


@pytest.fixture
def opened(browser) -> Iterator[Callable]:
    """Open a page in a context of its own; whatever it says on its console fails the test."""
    contexts, said = [], []

    def open_page(path: Path, **options):
        contexts.append(browser.new_context(**(DESK | options)))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if "http" in request.url else 0)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def inside(page, selector: str) -> bool:
    """Say whether an element lies wholly inside the window."""
    return page.locator(selector).first.evaluate(
        "e => { const b = e.getBoundingClientRect(); return b.height > 0 && b.top >= 0 "
        "&& b.bottom <= innerHeight && b.left >= 0 && b.right <= innerWidth }"
    )


def test_answer_and_gains_are_above_the_fold(opened, report, several):
    for path in (report, several):
        page = opened(path)
        assert inside(page, ".verdict .first")
        assert inside(page, ".verdict .second")
        assert inside(page, "header figure .wide svg")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_does_not_scroll_sideways(opened, report, several, scheme):
    for path in (report, several):
        page = opened(path, **PHONE, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("header .narrow svg").is_visible()
        assert not page.locator("header .wide svg").is_visible()
    light = scheme == "light"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 600) is light


def test_sorting(opened, report):
    table = opened(report).locator("table.sortable").first
    keys = "(t, c) => [...t.tBodies[0].rows].map(r => r.cells[c].dataset.key)"
    gain = table.locator("thead th").nth(3)
    assert gain.get_attribute("aria-sort") is None
    gain.locator("button").click()
    up = table.evaluate(keys, 3)
    assert gain.get_attribute("aria-sort") == "ascending"
    gain.locator("button").press("Enter")
    down = table.evaluate(keys, 3)
    assert gain.get_attribute("aria-sort") == "descending"
    numbers = [float(key) for key in up if key]
    assert len(numbers) == 5
    assert numbers == sorted(numbers)
    assert [float(key) for key in down if key] == numbers[::-1]
    assert up[5:] == down[5:] == [""] * (len(up) - 5)

    order = table.locator("thead th").nth(0)
    order.locator("button").press(" ")
    names = table.evaluate(keys, 0)
    assert names == sorted(names)
    assert order.get_attribute("aria-sort") == "ascending"
    assert gain.get_attribute("aria-sort") is None


def tip(page, figure):
    """Return what a figure says: the series, then the lines below it."""
    box = figure.locator(".tip")
    assert box.is_visible()
    return box.evaluate("t => [...t.children].map(c => c.textContent)")


def test_gains_tell_their_numbers(opened, report, study):
    page = opened(report)
    figure = page.locator("header figure")
    marks = figure.locator(".wide g[data-points] use")
    gains = {g.arm.replace("_", " "): g.estimate for g in study[1].results[0].gains}
    told = {}
    for i in range(marks.count()):
        marks.nth(i).hover()
        name, value, interval, *_ = tip(page, figure)
        told[name] = value, interval
    assert told == {
        arm: (
            f"{signed(e.mean, 'accuracy')} points",
            f"95% interval {signed(e.low, 'accuracy')} to {signed(e.high, 'accuracy')}",
        )
        for arm, e in gains.items()
    }
    page.mouse.move(2, 2)
    assert not figure.locator(".tip").is_visible()


def test_curves_tell_their_numbers_by_mouse_touch_and_keyboard(opened, report, study):
    page = opened(report)
    figure = page.locator("figure", has=page.locator(".key"))
    curve = study[0].outcomes[0].curves["random"]
    means = np.nanmean(curve.values, axis=(0, 2))
    expected = [
        ["random", f"{100 * mean:.1f}% right", f"{seen} questions seen"]
        for seen, mean in zip(curve.seen, means, strict=True)
    ]
    random = figure.locator('.wide g[data-name="random"] use')
    random.nth(4).hover()
    assert tip(page, figure) == expected[4]

    stop = figure.locator('.wide use[tabindex="0"]')
    assert stop.count() == 1
    random.first.focus()
    walked = [tip(page, figure)]
    for _ in range(5):
        page.keyboard.press("ArrowRight")
        walked.append(tip(page, figure))
    assert walked == [*expected, expected[4]]
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label == f"{expected[4][0]}: {expected[4][1]}, {expected[4][2]}"
    assert stop.count() == 1
    assert stop.get_attribute("aria-label") == label

    ends = {
        arm.replace("_", " "): np.nanmean(c.values, axis=(0, 2))[4]
        for arm, c in study[0].outcomes[0].curves.items()
    }
    while tip(page, figure)[0] != max(ends, key=ends.get):
        page.keyboard.press("ArrowUp")
    downwards = []
    for _ in ends:
        downwards.append(tip(page, figure)[0])
        page.keyboard.press("ArrowDown")
    assert [ends[name] for name in downwards] == sorted(ends.values(), reverse=True)
    page.keyboard.press("Escape")
    assert not figure.locator(".tip").is_visible()

    phone = opened(report, **PHONE)
    figure = phone.locator("figure", has=phone.locator(".key"))
    figure.locator('.narrow g[data-name="random"] use').nth(4).tap(force=True)
    assert tip(phone, figure) == expected[4]


def test_curves_are_hidden_and_shown(opened, report):
    page = opened(report)
    figure = page.locator("figure", has=page.locator(".key"))
    button = figure.get_by_role("button", name="random", exact=True)
    lines = figure.locator('g[data-name="random"]')
    assert lines.count() == 2
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert lines.evaluate_all("g => g.map(x => getComputedStyle(x).display)") == ["none"] * 2
    stop = figure.locator('.wide use[tabindex="0"]')
    assert stop.count() == 1
    assert not stop.get_attribute("aria-label").startswith("random")
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert "none" not in lines.evaluate_all("g => g.map(x => getComputedStyle(x).display)")


def counted(page) -> list[int]:
    texts = page.locator("#drill-tally small").all_inner_texts()
    return [int(text.replace(",", "")) for text in texts]


def listed(page) -> list[dict]:
    """Read the whole list, page by page: id, question, options, right option and shares."""
    found = []
    while True:
        found += page.locator("#drill-list > li").evaluate_all("""items => items.map(item => ({
            id: item.querySelector(".meta span").textContent.split(" · ").at(-1),
            gap: item.querySelector(".gap").textContent,
            text: item.querySelector(".text").textContent,
            options: [...item.querySelectorAll(".options li")].map(o => o.firstChild.textContent),
            right: [...item.querySelectorAll(".options li")].findIndex(
              o => o.className === "right"),
            shares: Object.fromEntries([...item.querySelectorAll(".shares div")].map(
              d => [d.querySelector("dt").textContent, d.querySelector("dd").firstChild.textContent]
            )),
          }))""")
        if page.locator("#drill-next").is_disabled():
            return found
        page.locator("#drill-next").click()


def sizes(page) -> list[int]:
    """Read how many questions each choice of the filter promises."""
    texts = page.locator("#drill-show option").all_inner_texts()
    return [int(re.search(r"\(([\d,]+)\)$", text)[1].replace(",", "")) for text in texts]


@pytest.mark.parametrize(
    ("first", "second"),
    [("interleaved", "random"), ("random", "blocked"), ("curriculum", "untuned model")],
)
def test_two_orders_question_by_question(opened, report, study, first, second):
    o = study[0].outcomes[0]
    runs = o.arms | {"untuned model": np.repeat(o.untuned[None], 3, axis=0)}
    kept = ~o.meaningless
    a, b = runs[first][:, kept], runs[second][:, kept]
    both = ~np.isnan(a).any(axis=1) & ~np.isnan(b).any(axis=1)
    a, b = a[both] == 1, b[both] == 1
    gap = a.sum(axis=0) - b.sum(axis=0)

    page = opened(report)
    page.locator("#drill-first").select_option(label=first)
    page.locator("#drill-second").select_option(label=second)
    assert counted(page) == [(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()]
    mean = signed(float((1.0 * a - b).mean()), "accuracy")
    assert f"{first} minus {second}: {mean} point" in page.locator("#drill-summary").inner_text()
    assert sizes(page) == [197, (gap > 0).sum(), (gap < 0).sum(), (gap == 0).sum()]

    ids = np.array(o.ids)[kept]
    for number, chosen in enumerate([gap > -9, gap > 0, gap < 0, gap == 0]):
        page.locator("#drill-show").select_option(str(number))
        entries = listed(page)
        in_order = np.flatnonzero(chosen)[np.argsort(-gap[chosen], kind="stable")]
        assert [entry["id"] for entry in entries] == list(ids[in_order])
        assert [
            int(e["gap"].split(" of ")[0].replace("−", "-")) for e in entries
        ] == gap[in_order].tolist()  # fmt: skip
        if number:
            continue
        for entry in entries:
            q = o.ids.index(entry["id"])
            assert entry["text"] == o.questions[q]
            assert entry["options"] == o.options[q]
            assert entry["right"] == o.answers[q]
            for arm, values in (o.arms | {"untuned model": o.untuned[None]}).items():
                there = values[~np.isnan(values[:, q]), q]
                share = entry["shares"][arm.replace("_", " ")]
                assert share == f"{there.sum():.0f} of {len(there)}"
    page.locator("#drill-show").select_option("0")
    page.locator("#drill-sort").select_option(label=f"{second} ahead first")
    backwards = ids[np.argsort(gap, kind="stable")]
    assert [entry["id"] for entry in listed(page)] == list(backwards)
    page.locator("#drill-sort").select_option(label="hardest first")
    right = sum(np.nansum(values[:, kept], axis=0) for values in o.arms.values())
    assert [entry["id"] for entry in listed(page)] == list(ids[np.argsort(right, kind="stable")])


def test_first_and_second_are_the_best_and_the_baseline(opened, report, study):
    page = opened(report)
    gains = study[1].results[0].gains
    best = max(gains, key=lambda gain: gain.estimate.mean).arm.replace("_", " ")
    shown = "s => s.selectedOptions[0].textContent"
    assert page.locator("#drill-first").evaluate(shown) == best
    assert page.locator("#drill-second").evaluate(shown) == "random"


def test_search_and_pages(opened, report, study):
    o = study[0].outcomes[0]
    page = opened(report)
    page.locator("#drill-sort").select_option(label="order of the file")
    status = page.get_by_role("status")
    assert status.inner_text() == "Questions 1 to 10 of 197"
    assert page.locator("#drill-back").is_disabled()
    page.locator("#drill-next").press("Enter")
    assert status.inner_text() == "Questions 11 to 20 of 197"
    page.get_by_label("Search").fill("TERM  19")
    expected = [
        name
        for q, name in enumerate(o.ids)
        if "19" in " ".join([name, o.questions[q], *o.options[q]]) and not o.meaningless[q]
    ]
    assert [entry["id"] for entry in listed(page)] == expected
    assert 10 < len(expected) < 40
    page.get_by_label("Search").fill("no such words")
    assert status.inner_text() == "No question fits."
    assert page.locator("#drill-list > li").count() == 0


def test_hostile_text_stays_text(opened, report):
    page = opened(report)
    page.get_by_label("Search").fill("onerror")
    assert [entry["text"] for entry in listed(page)] == [EVIL]
    assert page.locator("#drill img, #drill b").count() == 0
    assert page.title() == "ICD-10-CM demo"


def test_comparisons_are_chosen(opened, several, outcome):
    page = opened(several)
    page.get_by_label("Comparison", exact=True).select_option(label="smollm2-135m on set 1")
    page.locator("#drill-first").select_option(label="blocked")
    made = outcome({"blocked": 0.1}, evaluation="set 1", seed=1)
    a, b = made.arms["blocked"] == 1, made.arms["random"] == 1
    assert counted(page) == [(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()]


def test_real_scores_question_by_question(opened, tmp_path):
    rng = np.random.default_rng(0)
    values = {arm: rng.normal(size=(3, 20)).astype(np.float32) for arm in ("random", "blocked")}
    rows = [
        (f"q{q}", arm, s, float(grid[s, q]))
        for arm, grid in values.items()
        for s in range(3)
        for q in range(20)
    ]
    table = dict(zip(("id", "arm", "seed", "value"), zip(*rows, strict=True), strict=True))
    page = opened(write_report(compare(table), tmp_path))
    gap = (values["blocked"] - values["random"]).mean(axis=0)
    assert sizes(page) == [20, (gap > 0).sum(), (gap < 0).sum(), 0]
    top = page.locator("#drill-list > li").first
    best = int(np.argmax(gap))
    assert top.locator(".meta span").first.inner_text() == f"q{best}"
    assert float(top.locator(".gap").inner_text()) == pytest.approx(gap[best], rel=5e-3)
    assert float(top.locator("dd").first.inner_text()) == pytest.approx(
        values["blocked"][:, best].mean(), rel=1e-3
    )


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened, report):
    page = opened(report)
    # A closed part holds nothing to walk to; a figure is one stop, whatever it draws.
    reachable = page.evaluate("""() => [...document.querySelectorAll(
        "a[href], button, select, input, summary, [tabindex='0']")].filter(
        e => e.checkVisibility() && !e.disabled).length""")
    seen = []
    for _ in range(reachable):
        page.keyboard.press("Tab")
        here = page.evaluate("""() => { const e = document.activeElement;
            const style = getComputedStyle(e);
            const ring = e.tagName === "use" && document.querySelector(".ring") !== null;
            window.walked = window.walked || new Set(); window.walked.add(e);
            return {tag: e.tagName, marked: ring || style.outlineStyle !== "none",
                    count: window.walked.size}; }""")
        assert here["tag"] != "BODY"
        assert here["marked"], here
        seen.append(here["count"])
    assert seen == list(range(1, reachable + 1))


def test_paper(opened, report):
    page = opened(report, color_scheme="dark")
    closed = page.locator("details").first
    assert closed.get_attribute("open") is None
    page.emulate_media(media="print")
    page.locator("details:not([open])").first.wait_for(state="detached")
    for control in ("#questions", "nav", ".skip", ".cautions-link"):
        assert not page.locator(control).first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.set_viewport_size({"width": 680, "height": 960})  # A4 between its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    cut = "b => b.filter(x => x.scrollWidth > x.clientWidth + 1).length"
    assert page.locator(".scroll").evaluate_all(cut) == 0
    page.emulate_media(media="screen")
    page.locator("details[open]").first.wait_for(state="detached")


def test_without_javascript(opened, report):
    page = opened(report, java_script_enabled=False)
    assert page.locator("table").first.is_visible()
    assert page.locator("thead button").count() == 0
    assert page.locator("header .wide svg").is_visible()
    assert page.locator(".key li").first.is_visible()
    assert not page.locator("#drill").is_visible()
    assert page.get_by_text("This part needs JavaScript").is_visible()


def test_headings_are_in_order(opened, report, several):
    for path in (report, several):
        levels = (
            opened(path).locator("h1, h2, h3, h4").evaluate_all("h => h.map(x => +x.tagName[1])")
        )
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=str)
def test_axe_finds_nothing(opened, report, several, options):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe").Axe()
    for path in (report, several):
        page = opened(path, **options)
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        found = axe.run(page).response["violations"]
        assert [(v["id"], v["impact"], v["nodes"][0]["html"]) for v in found] == []


def test_a_big_study_is_little_for_the_browser(opened, record, outcome, tmp_path):
    """102 runs over 5,000 questions: a bit for each answer, and no more elements than for 200."""

    def made(n_seeds: int, n_questions: int) -> tuple[str, int]:
        big = outcome(n_seeds=n_seeds, n_questions=n_questions)
        found: Analysis = replace(small, results=[replace(small.results[0], outcome=big)])
        text = page_text(record([big]), found, {})
        file = tmp_path / f"{n_questions}.html"
        file.write_text(text)
        page = opened(file)
        assert page.get_by_role("status").inner_text() == f"Questions 1 to 10 of {n_questions:,}"
        return text, page.locator("*").count()

    small = analyse(record([outcome()]))
    text, elements = made(17, 5000)
    _, fewer = made(17, 200)
    assert elements == fewer
    texts = sum(len(f"chapter {i}") for i in range(5000)) * 5 + 5000 * 60 + 5000 * 100
    answers = 102 * 5000 / 8 * 4 / 3
    assert len(text) < texts + 1.1 * answers + 150_000
