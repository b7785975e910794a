"""How trainers that read a file are set, so that they train on its rows as they stand.

Settings and defaults are those of Axolotl 0.19, LLaMA-Factory 0.9.5, ms-swift 4.6 and TRL 1.16.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
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


def trainer_settings(
    trainer: str, file: str | os.PathLike[str], columns: Iterable[str], epochs: int = 1
) -> str:
    """Return the settings with which a trainer keeps the order of a file.

    Args:
        trainer: a key of `TRAINERS`.
        file: the rows in order.
        columns: their names.
        epochs: passes over the data that the file holds, one after another.

    Returns:
        Lines in the trainer's own language (YAML, JSON, shell or Python), with comments.

    Raises:
        InputError: an unknown trainer.
    """
    if trainer not in TRAINERS:
        raise InputError(
            f"--for takes {', '.join(TRAINERS)}, not {trainer!r}." + nearest(trainer, TRAINERS)
        )
    names = set(columns)
    kind = next((kind for kind, needed in FORMATS.items() if names >= set(needed)), "other")
    if epochs == 1:
        note = "every epoch repeats the order of the file; for another, write --epochs E"
    else:
        note = f"the file holds all {epochs} epochs"
    return TRAINERS[trainer](Path(file), kind, f"# {note}")


def _axolotl(file: Path, kind: str, note: str) -> str:
    kinds = {
        "messages": "    type: chat_template\n    field_messages: messages",
        "completion": "    type:\n      field_instruction: prompt\n      field_output: completion\n"
        '      format: "{instruction}"\n      no_input_format: "{instruction}"',
        "alpaca": "    type: alpaca",
        "text": "    type: completion",
    }
    return f"""\
# Axolotl, supervised fine-tuning (curriculum_sampling does not reach its DPO trainer)
datasets:
  - path: {json.dumps(str(file))}
    ds_type: {"csv" if file.suffix == ".csv" else file.suffix.lstrip(".").replace("jsonl", "json")}
{kinds.get(kind, "    type:  # as your rows need it")}
curriculum_sampling: true
shuffle_merged_datasets: false
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
    kinds: dict[str, dict[str, object]] = {
        "messages": {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags},
        "completion": {"columns": {"prompt": "prompt", "response": "completion"}},
        "preference": {
            "ranking": True,
            "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        },
        "text": {"columns": {"prompt": "text"}},
    }
    entry = {file.stem: {"file_name": file.name, **kinds.get(kind, {})}}
    return f"""\
# LLaMA-Factory: into dataset_info.json, beside the file
{json.dumps(entry, indent=2)}
# and into the training's YAML file
dataset: {json.dumps(file.stem)}
dataset_dir: {json.dumps(str(file.parent))}
disable_shuffling: true
streaming: false  # it shuffles through a buffer
packing: false
neat_packing: false
mix_strategy: concat
val_size: 0.0  # a split is drawn at random, and shuffles the rest
num_train_epochs: 1.0  {note}"""


def _ms_swift(file: Path, kind: str, note: str) -> str:
    return f"""\
# ms-swift; with several processes, it leaves out the last rows that they cannot share evenly
{note}
swift sft --dataset {json.dumps(str(file))} \\
    --dataset_shuffle false --train_dataloader_shuffle false \\
    --split_dataset_ratio 0 --packing false --group_by_length false --streaming false \\
    --num_train_epochs 1"""


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


TRAINERS: dict[str, Callable[[Path, str, str], str]] = {
    "axolotl": _axolotl,
    "llamafactory": _llamafactory,
    "ms-swift": _ms_swift,
    "trl": _trl,
}
