"""A study of chat data from file to report, beside one of multiple choice."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from lessonplan import cli
from lessonplan.study import read_record
from tests.questions import write_rows

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
NAME = "log-likelihood per token"


def chat_rows(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": f"c{i}",
            "messages": [
                {"role": "user", "content": f"Which disease has the number {i} of {i % 3}?"},
                {"role": "assistant", "content": f"Disease {i * 7 % 11} of category {i % 3}."},
            ],
            "category": f"region {i % 3}",
            "difficulty": i * 37 % 101 / 100,
        }
        for i in range(first, first + n)
    ]


@pytest.fixture(scope="module")
def folder(data: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chat and multiple-choice files, a model with a chat template, and a study file."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(tiny_llama, folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    write_rows(folder / "chat.jsonl", chat_rows(24))
    write_rows(folder / "later.jsonl", chat_rows(12, first=100))
    shutil.copy(data / "test.jsonl", folder / "choice.jsonl")
    (folder / "study.yaml").write_text(
        f"models: [{{model: {folder / 'model'}, name: tiny}}]\n"
        "training: chat.jsonl\n"
        "evaluation: [later.jsonl, choice.jsonl]\n"
        "strategies: [random, blocked, curriculum]\n"
        "labels: {difficulty: [given, loss, length]}\n"
        "seeds: 3\n"
        "recipe: {threads: 1, learning_rate: 5.0e-3, adapter: {rank: 4, layers: 2}}\n"
        "checkpoints: {at: [0.5], questions: 6}\n"
    )
    return folder


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run `lessonplan`; return the status and what was said."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lessonplan", *map(str, words)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    from lessonplan.report import write_report
    from lessonplan.study import load_study, run_study

    run_study(load_study(folder / "study.yaml"), folder / "out")
    write_report(read_record(folder / "out"), folder / "out" / "report")
    return folder / "out"


def test_values_are_log_likelihoods_and_choices_stay_choices(out: Path) -> None:
    chat, choice = read_record(out).outcomes
    assert (chat.evaluation, chat.metric) == ("later", NAME)
    assert (choice.evaluation, choice.metric) == ("choice", "accuracy")
    for outcome in (chat, choice):
        assert list(outcome.arms) == [
            "random",
            "blocked",
            *(f"curriculum [difficulty={source}]" for source in ("given", "loss", "length")),
        ]
    assert chat.f1 == {}
    assert chat.answers is chat.n_options is chat.answer_seen is chat.meaningless is None
    assert set(choice.f1) >= {"random", "untuned"}
    assert set(np.unique(choice.arms["random"])) <= {0.0, 1.0}
    values = chat.arms["random"]
    assert values.shape == (3, 12)
    assert (values < 0).all()
    assert len(np.unique(values)) == values.size
    assert chat.untuned is not None
    assert values.mean() > chat.untuned.mean()  # it learned the form of the replies
    curve = chat.curves["random"]
    assert curve.values.shape == (3, 3, 6)
    part = [chat.ids.index(i) for i in chat.ids if i in _curve_ids(out)]
    np.testing.assert_array_equal(curve.values[:, -1], values[:, part])


def _curve_ids(out: Path) -> set[str]:
    plan = json.loads((out / "plan.json").read_text())
    run = next(r for r in plan["runs"] if r["arm"] == "random")
    [curve] = [e for e in run["evaluations"] if e["of"] == "later" and e["kind"] == "curve"]
    [file] = out.glob(f"tunings/{run['id']}/evaluations/{curve['id']}.parquet")
    return set(pq.read_table(file)["id"].to_pylist())


def test_the_label_by_loss_is_the_untuned_models(out: Path) -> None:
    record = read_record(out)
    by = {check.source: check for check in record.label_checks}
    np.testing.assert_allclose(by["loss"].difficulty, 1 - np.exp(-by["loss"].loss), atol=1e-6)
    assert all(source.answers is None for source in record.label_sources)


def test_the_report_speaks_of_nats(out: Path) -> None:
    page = (out / "report" / "index.html").read_text()
    assert "<h3>Scores and gain</h3>" in page
    assert "nats per token" in page
    head = (out / "report" / "scores.md").read_text().splitlines()[0]
    assert "score" in head
    gains = (out / "report" / "gains.csv").read_text().splitlines()
    assert len(gains) == 1 + 2 * 4
    assert not (out / "report" / "accuracy.md").exists()


def test_a_study_of_chat_alone_has_no_word_of_accuracy(
    folder: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    status, said = run(
        "study", folder / "study.yaml", "-o", tmp_path / "out", "--set", "evaluation=later.jsonl",
        "--set", "labels.difficulty=given", "--set", "strategies=[random, blocked]",
    )  # fmt: skip
    assert status == 0, said
    assert "nats per token (95% interval" in said
    for file in (tmp_path / "out" / "report").iterdir():
        if file.suffix in (".html", ".md", ".csv", ".tex", ".svg"):
            # Scripts and their data are not read by anybody.
            read = re.sub(r"<script.*?</script>", "", file.read_text(), flags=re.S).lower()
            assert not any(word in read for word in ("accuracy", "weighted f1"))
    table = (tmp_path / "out" / "report" / "scores.md").read_text()
    assert f"| {NAME} |" in table
    again = run("study", folder / "study.yaml", "-o", tmp_path / "out", "--set",
                "evaluation=later.jsonl", "--set", "labels.difficulty=given", "--set",
                "strategies=[random, blocked]")  # fmt: skip
    assert again[0] == 0
    assert "all 7 runs are done" in again[1]


def test_compare_takes_predictions_of_completions(
    folder: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    rows = []
    for arm, seed in [(a, s) for a in ("random", "curriculum") for s in range(3)]:
        of = tmp_path / f"{arm}{seed}"
        common = ["-m", folder / "model", "--set", "threads=1"]
        told = run("train", folder / "chat.jsonl", "-s", arm, "--seed", seed, "-o", of, *common)
        assert told[0] == 0, told
        told = run("evaluate", folder / "later.jsonl", "--adapter", of, "-o", f"{of}.parquet",
                   *common)  # fmt: skip
        assert f"12 completions: {NAME} -" in told[1]
        table = pq.read_table(f"{of}.parquet")
        rows += [
            {"id": i, "arm": arm, "seed": seed, "value": value}
            for i, value in zip(*(table[c].to_pylist() for c in ("id", "value")), strict=True)
        ]
    status, said = run("compare", write_rows(tmp_path / "results.jsonl", rows))
    assert status == 0
    assert "value" in said


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("scoring={form: letter}", "chat holds prompts with completions.*take cloze"),
        ("scoring={score: unconditional}", "take per_token, per_byte or sum"),
        ("recipe.loss=choice", "loss: choice compares options; take answer"),
        (
            "scoring={template: 'Q: {question}'}",
            "scoring.template writes multiple choice",
        ),
        ("labels.difficulty=llm", "measure: probability reads.*Take measure: loss or length"),
        ("labels.difficulty=confidence", "Take measure: loss or length"),
        ("recipe.max_tokens=16", "question c0: the completion.*Raise max_tokens"),
    ],
)
def test_what_needs_options_is_refused(
    folder: Path, tmp_path: Path, run: Callable[..., tuple[int, str]], setting: str, message: str
) -> None:
    status, said = run("study", folder / "study.yaml", "-o", tmp_path / "o", "--set", setting)
    assert status == 2
    assert re.search(message, said), said


def test_label_difficulty_on_the_command_line(
    folder: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    status, said = run("label", "difficulty", folder / "chat.jsonl", "-m", folder / "model",
                       "--measure", "loss", "--set", "threads=1", "-o",
                       tmp_path / "d.parquet")  # fmt: skip
    assert status == 0, said
    assert "1 minus the probability of the completion, per token" in said
    assert "bits" not in said
    table = pq.read_table(tmp_path / "d.parquet")
    difficulty = table["difficulty"].to_numpy()
    assert difficulty.min() > 0
    assert difficulty.max() < 1
