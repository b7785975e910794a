"""`lessonplan order --for`: rows of any format are kept whole, and the settings can be read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from lessonplan.cli import app
from lessonplan.errors import InputError
from lessonplan.integrations import trainer_settings

SCORES = [0.7, 0.1, 0.9, 0.4]
ROWS = {
    "messages": [
        {
            "messages": [
                {"role": "user", "content": f"é {i}"},
                {"role": "assistant", "content": ""},
            ],
            "score": score,
            "meta": {"tags": ["a", None], "deep": {"n": i}},
        }
        for i, score in enumerate(SCORES)
    ],
    "completion": [
        {"prompt": f"p{i}", "completion": [{"role": "assistant", "content": "x"}], "score": score}
        for i, score in enumerate(SCORES)
    ],
}


def order(folder: Path, kind: str, trainer: str, *more: str) -> tuple[list[str], str]:
    """Return the lines written and the settings printed."""
    data, out = folder / "data.jsonl", folder / "ordered.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]), encoding="utf-8")
    command = [
        "order",
        str(data),
        "-s",
        "curriculum",
        "--column",
        "difficulty=score",
        "-o",
        str(out),
    ]
    said = CliRunner().invoke(app, [*command, "--for", trainer, *more])
    assert said.exit_code == 0, said.output
    return out.read_text(encoding="utf-8").splitlines(), said.stdout.partition("\n")[2]


@pytest.mark.parametrize("kind", ROWS)
def test_rows_are_kept_whole(tmp_path: Path, kind: str) -> None:
    lines, _ = order(tmp_path, kind, "trl", "--epochs", "2")
    assert lines == [json.dumps(ROWS[kind][i]) for i in [1, 3, 0, 2] * 2]


@pytest.mark.parametrize("kind", ROWS)
def test_axolotl(tmp_path: Path, kind: str) -> None:
    found = YAML(typ="safe").load(order(tmp_path, kind, "axolotl")[1])
    [data] = found.pop("datasets")
    assert Path(data["path"]).name == "ordered.jsonl"
    assert data["ds_type"] == "json"
    # Prompts are text here, completions lists of messages, which Axolotl does not read there.
    assert data["type"] == ("chat_template" if kind == "messages" else None)
    prepared = found.pop("dataset_prepared_path")
    assert prepared.startswith("last_run_prepared/ordered-")
    assert found == {
        "curriculum_sampling": True,
        "shuffle_merged_datasets": False,
        "sample_packing": False,
        "group_by_length": False,
        "streaming": False,
        "dataset_exact_deduplication": False,
        "val_set_size": 0,
        "num_epochs": 1,
    }


def test_llamafactory(tmp_path: Path) -> None:
    said = order(tmp_path, "messages", "llamafactory")[1]
    text, _, settings = said.partition("# and into")
    entry = json.loads(text.partition("\n")[2])["ordered"]
    assert entry["file_name"] == "ordered.jsonl"
    assert entry["tags"]["role_tag"] == "role"
    found = YAML(typ="safe").load(settings.partition("\n")[2])
    assert found["disable_shuffling"] is True
    assert found["dataset"] == "ordered"
    assert [found[name] for name in ("streaming", "packing", "val_size")] == [False, False, 0]


def test_axolotl_prepares_another_content_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "o.jsonl"
    said = []
    for text in ("ab", "ba", "ab"):
        file.write_text(text, encoding="utf-8")
        said.append(trainer_settings("axolotl", file, ["text"]))
    assert said[0] == said[2] != said[1]


def test_llamafactory_names_the_columns_there_are() -> None:
    def columns(*names: str) -> dict[str, str]:
        said = trainer_settings("llamafactory", "a,b.csv", names)
        entry = json.loads(said.partition("\n")[2].partition("\n#")[0])
        return entry["a_b"]["columns"]  # a comma would name two data sets

    read = {"prompt": "instruction", "response": "output"}
    assert columns("instruction", "output", "id") == read
    assert columns("instruction", "output", "input") == {**read, "query": "input"}


@pytest.mark.parametrize(
    ("names", "command", "columns"),
    [
        (["messages"], ["sft"], None),
        (["instruction", "input", "output"], ["sft"], None),
        (["text"], ["pt"], {"text": "response"}),
        (["prompt", "completion"], ["sft"], {"prompt": "query", "completion": "response"}),
        (
            ["prompt", "chosen", "rejected"],
            ["rlhf", "--rlhf_type", "dpo"],
            {"prompt": "query", "chosen": "response", "rejected": "rejected_response"},
        ),
    ],
)
def test_ms_swift_commands(
    names: list[str], command: list[str], columns: dict[str, str] | None
) -> None:
    file = "it's $HOME/é.jsonl"
    said = shlex.split(trainer_settings("ms-swift", file, names), comments=True)
    assert said[1 : 1 + len(command)] == command
    assert said[said.index("--dataset") + 1] == file
    assert (json.loads(said[said.index("--columns") + 1]) if columns else None) == columns


@pytest.mark.parametrize("trainer", ["axolotl", "llamafactory", "ms-swift"])
def test_messages_in_pairs_are_not_read_as_text(trainer: str) -> None:
    rows = {"prompt": [[{"role": "user", "content": "2+2?"}]], "completion": [[]]}
    said = trainer_settings(trainer, "o.jsonl", rows)
    assert "lists of messages are read from one column, messages, alone" in said
    assert '"prompt"' not in said
    if trainer == "axolotl":
        said = trainer_settings(trainer, "o.jsonl", ["prompt", "chosen", "rejected"])
        assert "Axolotl's trainers for preferences shuffle" in said
    assert "as your rows need it" in trainer_settings(trainer, "o.jsonl", {"x": [1]})


def test_ms_swift_and_epochs(tmp_path: Path) -> None:
    said = order(tmp_path, "messages", "ms-swift", "--epochs", "3", "--each", "anew")[1]
    assert "--dataset_shuffle false --train_dataloader_shuffle false" in said
    assert "the file holds all 3 epochs" in said


def test_an_unknown_trainer() -> None:
    with pytest.raises(InputError, match="Did you mean 'axolotl'"):
        trainer_settings("axolotle", "o.jsonl", [])
