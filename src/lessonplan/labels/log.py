"""The log of what servers answered: what was asked is never asked again.

A line of JSON is written the moment an answer comes, so that a process killed at any time loses
what was under way and no more.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from lessonplan.errors import InputError, first_line


@dataclass(frozen=True)
class Answer:
    """What a server said to one prompt: a line of the log, without its key.

    Attributes:
        tokens: the top tokens with their log-probabilities in nats; empty where it gave none.
        prompt_tokens, completion_tokens: as the server counted, 0 where it does not.
    """

    tokens: dict[str, float]
    prompt_tokens: int
    completion_tokens: int


def answer_key(server: str, model: str, api: str, top: int, prompt: str) -> str:
    """Return what an answer is found by: a digest of all that was asked.

    Raises:
        InputError: the prompt is no text that can be sent.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError(f"A prompt holds half a character: {prompt[:60]!r}") from None
    asked = [server, model, api, top, prompt]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


@contextmanager
def locked(log: Path) -> Iterator[None]:
    """Hold a log for this process alone; its folder is made if need be.

    Raises:
        InputError: another process writes to it, or it cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{log}.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"Another process is writing answers to {log}. Wait until it is done, or stop it."
        ) from None
    except OSError as error:
        raise InputError(f"{log} cannot be written: {first_line(error)}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def opened(log: Path) -> Iterator[FileIO]:
    """Open a log for `write_answer`.

    Raises:
        InputError: it cannot be written.
    """
    try:
        file = log.open("ab", buffering=0)
    except OSError as error:
        raise InputError(f"{log} cannot be written: {first_line(error)}") from error
    with file:
        yield file


def write_answer(file: FileIO, key: str, answer: Answer) -> None:
    """Append an answer to an opened log."""
    entry = {"key": key, **vars(answer)}
    # One call, so that a line is cut by a killed process at worst.
    file.write((json.dumps(entry, allow_nan=False) + "\n").encode())


def read_log(log: Path) -> dict[str, Answer]:
    """Return the answers by key; a last line that was not finished is removed from the file.

    Raises:
        InputError: it cannot be read, or a line before the last is broken.
    """
    try:
        content = log.read_bytes() if log.exists() else b""
    except OSError as error:
        raise InputError(f"{log} cannot be read: {first_line(error)}") from error
    answers = {}
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        last = number == len(lines)
        if last and not line:
            break
        try:
            key, answer = _log_entry(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            if last:
                os.truncate(log, len(content) - len(line))
                break
            raise InputError(
                f"{log}, line {number} is no answer as lessonplan writes them: {line[:60]!r}. "
                "Remove the line, and its question is asked again."
            ) from None
        answers[key] = answer
        if last:
            with opened(log) as file:
                file.write(b"\n")
    return answers


def _log_entry(line: bytes) -> tuple[str, Answer]:
    entry = json.loads(line)
    tokens = {str(token): float(value) for token, value in entry["tokens"].items()}
    if not isinstance(entry["key"], str) or not all(map(math.isfinite, tokens.values())):
        raise ValueError
    return entry["key"], Answer(
        tokens, int(entry["prompt_tokens"]), int(entry["completion_tokens"])
    )
