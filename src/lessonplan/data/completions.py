"""Chat and instruction data: what stands before a completion, and the completion.

A completion is a question with one option. Conversations keep their turns, for each model to write
them in its own form; texts stand as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lessonplan.data import tables

ROLES = ("system", "user", "assistant")
Turn = dict[str, str]


@dataclass(frozen=True)
class Completion:
    """One row of chat or instruction data.

    Attributes:
        prompt: the text before the completion; of a conversation, what all turns but the system's
            say, for labels and for finding repeated rows.
        completion: what the model is to say.
        turns: the conversation up to the completion; None for plain text.
    """

    prompt: str
    completion: str
    turns: list[Turn] | None = None


def read_completions(
    found: Mapping[str, list[Any]], mapping: Mapping[str, Any], format: str, n: int
) -> tuple[list[Completion], dict[int, str]]:
    """Return the completion of every row, and what is wrong with rows that have none.

    Args:
        found: the table's columns.
        mapping: the format's columns -> the table's.
        format: "messages", "prompt_completion" or "alpaca".
        n: number of rows.
    """
    read = {"messages": _messages, "prompt_completion": _prompt_completion, "alpaca": _alpaca}
    examples: list[Completion] = []
    faults: dict[int, str] = {}
    plain: bool | None = None  # as the first row that can be used
    for i in range(n):
        cells = {key: found[name][i] for key, name in mapping.items()}
        try:
            example = read[format](cells)
            if plain is not None and plain != (example.turns is None):
                raise ValueError(
                    f"{'conversation' if plain else 'plain text'}, unlike the rows before it"
                )
            plain = example.turns is None
        except ValueError as fault:
            faults[i] = str(fault)
            example = Completion("", "")
        examples.append(example)
    return examples, faults


def _messages(cells: Mapping[str, Any]) -> Completion:
    value = cells["messages"]
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)  # how a list stands in a CSV
        except (ValueError, RecursionError):
            raise ValueError("messages that are no valid JSON") from None
    return _conversation(_turns(value, "messages"))


def _prompt_completion(cells: Mapping[str, Any]) -> Completion:
    prompt, completion = cells["prompt"], cells["completion"]
    if _listed(prompt) and _listed(completion):
        answer = _turns(completion, "completion")
        if len(answer) != 1:
            raise ValueError("completion of several turns")
        return _conversation(_turns(prompt, "prompt") + answer)
    return Completion(_text(prompt, "prompt"), _text(completion, "completion"))


def _alpaca(cells: Mapping[str, Any]) -> Completion:
    asked = _text(cells["instruction"], "instruction")
    given = cells.get("input")
    if not tables.is_missing(given):
        asked += f"\n{_text(given, 'input')}"
    answer = _text(cells["output"], "output")
    return _conversation([_turn("user", asked), _turn("assistant", answer)])


def _conversation(turns: list[Turn]) -> Completion:
    """Return the last turn with what stands before it, or raise ValueError: what is wrong."""
    *context, last = turns
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError("no assistant turn")
    if last["role"] != "assistant":
        raise ValueError("last turn that is not the assistant's")
    if not any(turn["role"] == "user" for turn in context):
        raise ValueError("no user turn before the last turn")
    if any(turn["role"] == "system" for turn in context[1:]):
        raise ValueError("system turn that is not the first")
    if not last["content"].strip():
        raise ValueError("empty completion")
    said = [turn["content"] for turn in context if turn["role"] != "system"]
    return Completion("\n\n".join(said), last["content"], context)


def _turns(value: Any, name: str) -> list[Turn]:
    if tables.is_missing(value) or (_listed(value) and not len(value)):
        raise ValueError(f"no {name}")
    if not _listed(value):
        raise ValueError(f"{name} that is no list of turns")
    turns = []
    for entry in value:
        if not isinstance(entry, dict) or not {"role", "content"} <= set(entry):
            raise ValueError("turn without role and content")
        if entry["role"] not in ROLES:
            raise ValueError(f"unknown role {str(entry['role'])[:40]!r}")
        if not isinstance(entry["content"], str):
            raise ValueError("turn whose content is no text")
        if entry.get("tool_calls"):
            raise ValueError("turn with tool_calls")
        turns.append(_turn(entry["role"], entry["content"]))
    return turns


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _text(value: Any, name: str) -> str:
    """Return a cell's text as it stands: white space is part of a prompt and of a completion."""
    if tables.is_missing(value):
        raise ValueError(f"empty {name}")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a CSV column of whole numbers
    if not isinstance(value, str):
        raise ValueError(f"{name} that is no text")
    return value
