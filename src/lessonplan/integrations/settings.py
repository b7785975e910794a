"""How trainers that read a file are set, so that they train on its rows as they stand.

Settings and defaults are those of Axolotl 0.19, LLaMA-Factory 0.9.5, ms-swift 4.6 and TRL 1.16.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lessonplan.errors import InputError, nearest

# What the formats of rows are known by: all of these columns.
FORMATS = {
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
# Formats whose columns hold text, or lists of messages, which TRL alone reads there.
PAIRS = ("preference", "completion")


def trainer_settings(
    trainer: str, file: str | os.PathLike[str], columns: Iterable[str], epochs: int = 1
) -> str:
    """Return the settings with which a trainer keeps the order of a file.

    Args:
        trainer: a key of `TRAINERS`.
        file: the rows in order.
        columns: their names; or the first rows, as cells by name, which say more.
        epochs: passes over the data that the file holds, one after another.

    Returns:
        Lines in the trainer's own language (YAML, JSON, shell or Python), with comments.

    Raises:
        InputError: an unknown trainer.
    """
    check_trainer(trainer)
    names = set(columns)
    kind = next((kind for kind, needed in FORMATS.items() if names >= set(needed)), "other")
    if kind in PAIRS and isinstance(columns, Mapping) and trainer != "trl":
        cells = [cell for name in FORMATS[kind] for cell in columns[name]]
        if any(isinstance(cell, list) for cell in cells):
            kind = "messages in pairs"
    if kind == "alpaca" and "input" in names:
        kind = "alpaca with input"
    if epochs == 1:
        note = "every epoch repeats the order of the file; for another, write --epochs E"
    else:
        note = f"the file holds all {epochs} epochs"
    return TRAINERS[trainer](Path(file), kind, f"# {note}")


def check_trainer(trainer: str) -> None:
    """Raise an InputError for a trainer whose settings are not known."""
    if trainer not in TRAINERS:
        raise InputError(
            f"--for takes {', '.join(TRAINERS)}, not {trainer!r}." + nearest(trainer, TRAINERS)
        )


def _axolotl(file: Path, kind: str, note: str) -> str:
    kinds = {
        "messages": "    type: chat_template\n    field_messages: messages",
        "completion": "    type:\n      field_instruction: prompt\n      field_output: completion\n"
        '      format: "{instruction}"\n      no_input_format: "{instruction}"',
        "alpaca": "    type: alpaca",
        "alpaca with input": "    type: alpaca",
        "text": "    type: completion",
    }
    return f"""\
# Axolotl, supervised fine-tuning (curriculum_sampling does not reach its DPO trainer)
datasets:
  - path: {_yaml(str(file))}
    ds_type: {"csv" if file.suffix == ".csv" else file.suffix.lstrip(".").replace("jsonl", "json")}
{kinds.get(kind, f"    type:  # {_as_needed(kind)}")}
curriculum_sampling: true
shuffle_merged_datasets: false
# rows once prepared are found again by the file's name, whatever it holds now: a folder for these
dataset_prepared_path: {_yaml(f"last_run_prepared/{_content_name(file)}")}
sample_packing: false
group_by_length: false
streaming: false
dataset_exact_deduplication: false  # rows may stand in the file more than once
val_set_size: 0  # it would be taken from the end of the order
num_epochs: 1  {note}"""


def _llamafactory(file: Path, kind: str, note: str) -> str:
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    alpaca = {"prompt": "instruction", "response": "output"}
    kinds: dict[str, dict[str, object]] = {
        "messages": {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags},
        "completion": {"columns": {"prompt": "prompt", "response": "completion"}},
        "preference": {
            "ranking": True,
            "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        },
        "alpaca": {"columns": alpaca},
        "alpaca with input": {"columns": {**alpaca, "query": "input"}},
        "text": {"columns": {"prompt": "text"}},
    }
    stage = {"text": "pt", "preference": "dpo"}.get(kind, "sft")
    name = file.stem.replace(",", "_")  # a comma would name two
    entry = {name: {"file_name": file.name, **kinds.get(kind, {})}}
    unknown = "" if kind in kinds else f"  # columns: {_as_needed(kind)}"
    return f"""\
# LLaMA-Factory: into dataset_info.json, beside the file
{json.dumps(entry, indent=2)}
# and into the training's YAML file
stage: {stage}
dataset: {_yaml(name)}{unknown}
dataset_dir: {_yaml(str(file.parent))}
disable_shuffling: true
streaming: false  # it shuffles through a buffer
packing: false
neat_packing: false
mix_strategy: concat
val_size: 0.0  # a split is drawn at random, and shuffles the rest
num_train_epochs: 1.0  {note}"""


def _ms_swift(file: Path, kind: str, note: str) -> str:
    kinds = {
        "completion": {"prompt": "query", "completion": "response"},
        "preference": {
            "prompt": "query",
            "chosen": "response",
            "rejected": "rejected_response",
        },
        "alpaca": {"instruction": "query", "output": "response"},
        "text": {"text": "response"},
    }
    command = {"text": "pt", "preference": "rlhf --rlhf_type dpo"}.get(kind, "sft")
    # Said, since other columns that ms-swift takes for a question or answer make it read neither.
    columns = f" \\\n    --columns {shlex.quote(json.dumps(kinds[kind]))}" if kind in kinds else ""
    known = kind in kinds or kind in ("messages", "alpaca with input")
    unknown = "" if known else f"# --columns: {_as_needed(kind)}\n"
    return f"""\
# ms-swift; with several processes, it leaves out the last rows that they cannot share evenly
{unknown}{note}
swift {command} --dataset {shlex.quote(str(file))}{columns} \\
    --dataset_shuffle false --train_dataloader_shuffle false \\
    --split_dataset_ratio 0 --packing false --group_by_length false --streaming false \\
    --lazy_tokenize false --num_train_epochs 1"""


def _trl(file: Path, kind: str, note: str) -> str:
    trainer = "DPO" if kind == "preference" else "SFT"
    extra = ", shuffle_dataset=False, packing=False" if trainer == "SFT" else ""
    reader = {".csv": "csv", ".parquet": "parquet"}.get(file.suffix, "json")
    return f"""\
# TRL (GRPOConfig needs shuffle_dataset=False alone)
{note}
data = load_dataset({reader!r}, data_files={str(file)!r}, split="train")
args = {trainer}Config(
    ..., train_sampling_strategy="sequential"{extra}, num_train_epochs=1
)
trainer = {trainer}Trainer(..., args=args, train_dataset=data)"""


def _yaml(text: str) -> str:
    """Return a text as YAML reads it."""
    return json.dumps(text, ensure_ascii=False)


def _as_needed(kind: str) -> str:
    """Return what to say of rows that have no settings."""
    if kind == "messages in pairs":
        return "lists of messages are read from one column, messages, alone"
    if kind == "preference":  # the others know it
        return "none keeps the order of pairs: Axolotl's trainers for preferences shuffle"
    return "as your rows need it"


def _content_name(file: Path) -> str:
    """Return a name that another content of the file does not have."""
    if not file.is_file():
        return file.stem
    with file.open("rb") as data:
        return f"{file.stem}-{hashlib.file_digest(data, 'blake2b').hexdigest()[:12]}"


TRAINERS: dict[str, Callable[[Path, str, str], str]] = {
    "axolotl": _axolotl,
    "llamafactory": _llamafactory,
    "ms-swift": _ms_swift,
    "trl": _trl,
}
