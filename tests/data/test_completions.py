"""Chat and instruction data: what is read, and what is refused with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lessonplan.data import overlap, read_questions
from lessonplan.errors import InputError


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def chat(*contents: str, system: str | None = None, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    turns = [turn(roles[i % 2], content) for i, content in enumerate(contents)]
    first = [] if system is None else [turn("system", system)]
    return {"messages": first + turns, **more}


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_conversation_is_its_turns_and_the_last_reply(tmp_path: Path) -> None:
    rows = [
        chat("Hi", " Hello. ", "Who?", "Me.\n", system="Be brief.", category="talk", difficulty=2),
        chat("And now?", "Now.", category="time", difficulty=1),
    ]
    found = read_questions(written(tmp_path, *rows)).questions
    assert found["question"][:] == ["Hi\n\n Hello. \n\nWho?", "And now?"]
    assert found["options"][:] == [["Me.\n"], ["Now."]]  # white space is what a model must say
    assert found["answer"][:] == [0, 0]
    assert [json.loads(t) for t in found["turns"]] == [row["messages"][:-1] for row in rows]
    assert found["category"][:] == ["talk", "time"]
    assert found["difficulty"][:] == [2, 1]
    assert found["id"][:] == ["0", "1"]


def test_plain_texts_stay_as_they_stand(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "The sky is", "completion": " blue.", "id": "s"})
    found = read_questions(path).questions
    assert (found["question"][0], found["options"][0]) == ("The sky is", [" blue."])
    assert "turns" not in found.column_names
    table = tmp_path / "sums.csv"
    table.write_text("prompt,completion\n1 + 1 =,2\n1 + 2 =,3\n")
    assert read_questions(table).questions["options"][:] == [["2"], ["3"]]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [turn("user", "Add.\n1 + 2")], "completion": [turn("assistant", "3")]},
        {"instruction": "Add.", "input": "1 + 2", "output": "3"},
        {"instruction": "Add.\n1 + 2", "input": "", "output": "3"},
        {"instruction": "Add.\n1 + 2", "output": "3"},
        {"messages": json.dumps(chat("Add.\n1 + 2", "3")["messages"])},
    ],
)
def test_the_formats_of_one_conversation_are_one(tmp_path: Path, row: dict[str, Any]) -> None:
    found = read_questions(written(tmp_path, row)).questions
    same = read_questions(written(tmp_path, chat("Add.\n1 + 2", "3"))).questions
    assert found[:] == same[:]


def test_columns_name_the_conversation(tmp_path: Path) -> None:
    path = written(tmp_path, {"talk": chat("a", "b")["messages"], "topic": "x"})
    columns = {"messages": "talk", "category": "topic"}
    found = read_questions(path, columns=columns).questions
    assert (found["options"][0], found["category"][0]) == (["b"], "x")
    with pytest.raises(InputError, match="'question' is no column of the format messages"):
        read_questions(path, format="messages", columns=columns | {"question": "talk"})


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": None}, "no messages"),
        ({"messages": []}, "no messages"),
        ({"messages": 7}, "messages that is no list of turns"),
        ({"messages": [{"from": "human", "value": "a"}]}, "turn without role and content"),
        ({"messages": [turn("user", "a")]}, "no assistant turn"),
        ({"messages": chat("a", "b", "c")["messages"]}, "last turn that is not the assistant's"),
        ({"messages": [turn("assistant", "a")]}, "no user turn before the last turn"),
        ({"messages": chat("a", " \n")["messages"]}, "empty completion"),
        ({"messages": [turn("human", "a"), turn("assistant", "b")]}, "unknown role 'human'"),
        (
            {"messages": [turn("user", [{"type": "image"}]), turn("assistant", "b")]},
            "turn whose content is no text",
        ),
        (
            {"messages": [turn("user", "a"), turn("system", "s"), turn("assistant", "b")]},
            "system turn that is not the first",
        ),
        (
            {"messages": [turn("user", "a"), turn("assistant", "b") | {"tool_calls": [1]}]},
            "turn with tool_calls",
        ),
        (chat("good", "a good reply", id=None), "empty id"),
        (chat("good", "a good one", difficulty="hard"), "difficulty that is no number"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    good = chat("another", "reply", id="1", difficulty=1)
    path = written(tmp_path, good, {"id": "2", "difficulty": 1, **row})
    with pytest.raises(
        InputError, match=rf"1 of 2 rows cannot be used. {re.escape(fault)}: 1 \(line 2\)"
    ):
        read_questions(path)
    kept = read_questions(path, bad_rows="drop")
    assert kept.questions["id"][:] == ["1"]
    assert kept.dropped == {fault: 1}


def test_plain_rows_and_conversations_are_not_mixed(tmp_path: Path) -> None:
    plain = {"prompt": "a", "completion": "b"}
    talk = {"prompt": [turn("user", "c")], "completion": [turn("assistant", "d")]}
    half = {"prompt": "e", "completion": [turn("assistant", "f")]}
    # Two kinds in one column: only a Dataset in memory, or JSON, can hold them.
    with pytest.raises(InputError, match=r"conversation, unlike the rows before it: 1 \(line 2\)"):
        read_questions(written(tmp_path, plain, talk))
    with pytest.raises(InputError, match=r"completion that is no text: 1 \(line 2\)"):
        read_questions(written(tmp_path, plain, half))
    with pytest.raises(InputError, match=r"messages and prompt_completion.*with format"):
        read_questions(written(tmp_path, chat("a", "b"), plain))
    with pytest.raises(InputError, match=r"no messages: 1 \(line 2\)"):
        read_questions(written(tmp_path, chat("a", "b"), plain), format="messages")


def test_the_same_prompt_may_have_several_completions(tmp_path: Path) -> None:
    path = written(tmp_path, chat("Tell a joke.", "Knock."), chat("Tell a joke.", "No, thanks."))
    found = read_questions(path).questions
    assert len(found) == 2
    assert overlap(found.select([0]), found) == ["0"]
    again = written(tmp_path, chat("Tell a joke.", "Knock."), chat("tell a joke", "knock!"))
    with pytest.raises(InputError, match=r"repeated question: 1 \(line 2\)"):
        read_questions(again)


def test_a_kept_column_cannot_hide_the_turns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rename the column 'turns'"):
        read_questions(written(tmp_path, chat("a", "b", turns=3)), keep=["turns"])
