"""Every code block of the documentation runs, or says why it does not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.docs.blocks import ROOT, Block, blocks, check_commands, misuse, run

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "bench" / "README.md", *DOCS]
LANGUAGES = ("python", "console", "bash", "yaml", "text", "csv", "json", "jsonl", "latex", "html")
# Pages whose blocks tune a model.
SLOW = ("tutorial", "README")


def parameters() -> list[Any]:
    return [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=[pytest.mark.slow] if page.stem in SLOW else [],
        )
        for page in PAGES
    ]


@pytest.mark.parametrize("page", parameters())
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    if page.name == "README.md" and page.parent == ROOT:
        names |= what_the_readme_takes_for_granted(monkeypatch)
    for block in blocks(page):
        if block.language == "indented":
            check_commands(block)
        else:
            run(block, names)


def what_the_readme_takes_for_granted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The reader's own labels and results; and few questions, since many take minutes."""
    import lessonplan
    from lessonplan.data import sample

    load = lessonplan.load_questions
    monkeypatch.setattr(lessonplan, "load_questions", lambda *a, **k: sample(load(*a, **k), 12, 0))
    n = 3 * 20
    return {
        "topics": ["heart", "lung"] * 6,
        "difficulty": [i / 12 for i in range(12)],
        "ids": [i % 20 for i in range(n)] * 2,
        "arms": ["random"] * n + ["curriculum"] * n,
        "seeds": [i // 20 for i in range(n)] * 2,
        "correct": [i % 3 == 0 for i in range(n)] + [i % 2 == 0 for i in range(n)],
    }


def test_every_block_is_of_a_known_kind() -> None:
    """A block of another language would pass unseen; so would an indented one in the docs."""
    unknown = [
        f"{block.place}: {block.language or 'no language'}"
        for page in DOCS
        for block in blocks(page)
        if block.language not in LANGUAGES
    ]
    assert not unknown


def test_what_does_not_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    still = [block for page in PAGES for block in blocks(page) if block.runs is False]
    fenced = [block for block in still if block.language != "indented"]
    assert not [block.place for block in fenced if not block.reason]
    reasons = Counter(block.reason for block in fenced)
    with capsys.disabled():
        print(f"\n{len(fenced)} code blocks do not run here:")
        for reason, count in reasons.most_common():
            print(f"  {count} {reason}")


def test_a_wrong_command_is_found() -> None:
    assert misuse(["order", "train.jsonl", "-s", "random", "-o", "out.jsonl"]) is None
    assert misuse(["study", "--help"]) is None
    for wrong in (
        ["odrer", "train.jsonl"],
        ["order", "train.jsonl", "-s", "random"],  # no --out
        ["order", "train.jsonl", "-s", "random", "-o", "x.csv", "--sead", "1"],
        ["order", "train.jsonl", "-s", "random", "-o", "x.csv", "--seed", "one"],
        ["label", "train.jsonl"],
        [],
    ):
        assert misuse(wrong), wrong


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "1 / 0"),
        ("bash", "false\ntrue"),
        ("console", "$ lessonplan strategies\n$ false"),
        ("console", "$ lessonplan strategys"),
        ("yaml", "seedz: 3"),
        ("yaml", "recipe: {learning_rate: fast}"),
    ],
)
def test_a_wrong_block_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, ValueError, ZeroDivisionError)):
        run(Block(ROOT / "README.md", 1, language, text), {})


def test_blocks_are_found() -> None:
    kinds = Counter(block.language for block in blocks(ROOT / "docs" / "tutorial.md"))
    assert kinds == {"python": 3, "console": 5, "text": 3, "yaml": 1, "bash": 1}
