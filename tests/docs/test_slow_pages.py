"""The code blocks of the pages that tune a model: the tutorial and the README."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, run_page

pytestmark = pytest.mark.slow


def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(ROOT / "docs" / "tutorial.md", {})


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reader's own labels and results made up, and few questions, since many take long."""
    import lessonplan
    from lessonplan.data import sample

    load = lessonplan.load_questions
    monkeypatch.setattr(lessonplan, "load_questions", lambda *a, **k: sample(load(*a, **k), 12, 0))
    monkeypatch.chdir(tmp_path)
    n = 3 * 20
    names = {
        "topics": ["heart", "lung"] * 6,
        "difficulty": [i / 12 for i in range(12)],
        "ids": [i % 20 for i in range(n)] * 2,
        "arms": ["random"] * n + ["curriculum"] * n,
        "seeds": [i // 20 for i in range(n)] * 2,
        "correct": [i % 3 == 0 for i in range(n)] + [i % 2 == 0 for i in range(n)],
    }
    run_page(ROOT / "README.md", names)
