"""A tiny study of real runs: 48 training and 24 evaluation questions, a random-weight model."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lessonplan.study import Study, run_study
from lessonplan.study.plan import Plan
from tests.questions import question_rows, write_rows


def sourced_rows(n: int, first: int = 0) -> list[dict[str, Any]]:
    """Questions with a second difficulty, of another source."""
    rows = enumerate(question_rows(n, first), start=first)
    return [row | {"llm": i * 53 % 97 / 96} for i, row in rows]


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many cores the tests have must not decide what a study has to say."""
    monkeypatch.setattr("lessonplan.study.run._cores", lambda: 1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.jsonl, test.jsonl and more.jsonl, which share no question."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.jsonl", sourced_rows(48))
    write_rows(folder / "test.jsonl", sourced_rows(24, first=100))
    write_rows(folder / "more.jsonl", sourced_rows(12, first=200))
    return folder


@pytest.fixture(scope="session")
def settings(data: Path, tiny_llama: Path) -> dict[str, Any]:
    """The tiny study's settings; `make` lays changes over them."""
    return {
        "name": "tiny study",
        "models": [{"model": str(tiny_llama), "name": "tiny"}],
        "training": [{"data": str(data / "train.jsonl")}],
        "evaluation": [{"data": str(data / "test.jsonl")}],
        "strategies": ["random", "blocked", "curriculum"],
        "seeds": 2,
        "recipe": {
            "threads": 1,
            "learning_rate": 5e-3,
            "adapter": {"rank": 4, "layers": 2},
        },
        "checkpoints": {"at": [0.5], "questions": 10},
    }


@pytest.fixture(scope="session")
def make(settings: dict[str, Any]) -> Callable[..., Study]:
    """Return a function that makes the tiny study with some settings changed."""
    return lambda **changes: Study.model_validate(settings | changes)


@pytest.fixture(scope="session")
def finished(
    make: Callable[..., Study], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Plan]:
    """The finished tiny study; tests copy the folder before they change it."""
    folder = tmp_path_factory.mktemp("studies") / "finished"
    return folder, run_study(make(), folder)


@pytest.fixture
def copied(finished: tuple[Path, Plan], tmp_path: Path) -> Path:
    """A copy of the finished tiny study, to be changed."""
    folder = tmp_path / "study"
    shutil.copytree(finished[0], folder, copy_function=shutil.copy2)
    return folder


@pytest.fixture(scope="session")
def with_more(
    make: Callable[..., Study], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny study with a second evaluation set from the start."""
    folder = tmp_path_factory.mktemp("studies") / "more"
    run_study(make(evaluation=[str(data / "test.jsonl"), str(data / "more.jsonl")]), folder)
    return folder


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, str]]:
    """Return a function that digests what a study's results are: all but logs and reports."""

    def read(folder: Path) -> dict[str, str]:
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted((folder / "tunings").rglob("*"))
            if file.is_file() and file.name not in ("tuning.json", "SHA256SUMS")
        }

    return read
