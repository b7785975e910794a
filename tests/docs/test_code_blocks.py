"""Every code block of the documentation runs, or says why it does not."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks, misuse, name, run, run_page

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "bench" / "README.md", *DOCS]
LANGUAGES = ("python", "console", "bash", "yaml", "text", "csv", "json", "jsonl", "latex", "html")
# Pages whose blocks tune a model, in `test_slow_pages.py`: a file is the unit of parallel testing.
SLOW = (ROOT / "README.md", ROOT / "docs" / "tutorial.md")


@pytest.mark.parametrize("page", [p for p in PAGES if p not in SLOW], ids=name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, {})


def test_every_block_is_of_a_known_kind() -> None:
    """A block of another language would pass unseen."""
    unknown = [
        f"{block.place}: {block.language or 'no language'}"
        for page in DOCS
        for block in blocks(page)
        if block.language not in (*LANGUAGES, "indented")
    ]
    assert not unknown


def test_commands_are_fenced() -> None:
    """What is indented does not run; on the site that is for formulas."""
    indented = [b for page in DOCS for b in blocks(page) if b.language == "indented"]
    commands = re.compile(r"^(\$ |>>> |lessonplan |make |pip |python )", re.MULTILINE)
    found = [block.place for block in indented if commands.search(block.text)]
    assert not found, "write ```console, ```bash or ```python: see tests/docs/blocks.py"


def test_what_does_not_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    still = [block for page in PAGES for block in blocks(page) if not block.runs]
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
