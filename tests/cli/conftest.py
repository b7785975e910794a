"""The command line in this process, and a folder of files that its tests read."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

from lessonplan import cli
from tests.questions import question_rows, write_rows


class Said(NamedTuple):
    status: int
    out: str
    err: str


def run(*arguments: object) -> Said:
    """Run the command line in this process. What is no documented error is raised."""
    out, err = io.StringIO(), io.StringIO()
    argv, show, status = sys.argv, warnings.showwarning, 0
    sys.argv = ["lessonplan", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        sys.argv, warnings.showwarning = argv, show
    return Said(status, out.getvalue(), err.getvalue())


STUDY = """
name: small
models: {model: MODEL, name: tiny}
training: train.jsonl
evaluation: test.jsonl
strategies: [random, blocked, curriculum]
seeds: 3
recipe: {threads: 1, learning_rate: 5e-3, adapter: {rank: 4, layers: 2}}
checkpoints: {at: [0.5], questions: 8}
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Folder with questions, good and bad, a model without tokenizer, and a study file."""
    folder = tmp_path_factory.mktemp("cli")
    good = question_rows(48)
    write_rows(folder / "train.jsonl", good)
    write_rows(folder / "test.jsonl", question_rows(24, first=100))
    write_rows(folder / "outside.jsonl", [*good[:3], good[3] | {"answer": "E"}])
    write_rows(
        folder / "one_option.jsonl", [*good[:3], good[3] | {"options": ["all"], "answer": "A"}]
    )
    write_rows(folder / "empty_option.jsonl", [*good[:3], good[3] | {"options": ["a", " ", "c"]}])
    write_rows(folder / "twice.jsonl", [*good[:3], good[3] | {"id": "q1"}])
    write_rows(folder / "nan.jsonl", [*good[:3], good[3] | {"difficulty": float("nan")}])
    bare = ("id", "question", "options", "answer")
    write_rows(folder / "bare.jsonl", [{k: row[k] for k in bare} for row in good])
    long = " ".join(f"word{i}" for i in range(300))
    write_rows(
        folder / "long.jsonl", [*good[:3], good[3] | {"options": [long, f"{long} b", "c", "d"]}]
    )
    (folder / "half.jsonl").write_text('{"question": "bad \\ud83d half"}\n')
    (folder / "broken.jsonl").write_text('{"id": 1}\n{"id": \n')
    (folder / "empty.jsonl").write_text("")
    (folder / "binary.csv").write_bytes(b"id\n\x1b[31m,\xaa\n")
    bare_model = folder / "no_tokenizer"
    bare_model.mkdir()
    for file in tiny_llama.iterdir():
        if "token" not in file.name:
            (bare_model / file.name).symlink_to(file)
    text = STUDY.replace("MODEL", str(tiny_llama))
    (folder / "study.yaml").write_text(text)
    (folder / "other.yaml").write_text(text.replace("name: small", "name: other"))
    (folder / "unknown.yaml").write_text(text + "seedz: 4\n")
    (folder / "own").mkdir()
    (folder / "own" / "study.yaml").write_text(text)
    (folder / "full").mkdir()
    (folder / "full" / "letter.txt").write_text("dear")
    (folder / "results.csv").write_text(
        "id,arm,seed,correct\n" + "".join(f"q{i},{a},0,{i % 2}\n" for i in range(4) for a in "xy")
    )
    return folder


@pytest.fixture(scope="session")
def study(folder: Path) -> tuple[Path, Said]:
    """A finished study with its report, and what was said."""
    return folder / "out", run("study", folder / "study.yaml", "-o", folder / "out")
