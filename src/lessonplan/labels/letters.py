"""Letters' probabilities from a server that speaks OpenAI's protocol.

vLLM, llama.cpp's server, llama-cpp-python's server and OpenAI itself say how likely the next token
is to be each of a few top ones. Asked after a multiple-choice prompt, they say how likely each
option's letter is. Every answer goes to the log (`lessonplan.labels.log`) the moment it comes.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessonplan.errors import InputError
from lessonplan.labels.client import ask_all
from lessonplan.labels.endpoint import Endpoint, secret_of
from lessonplan.labels.log import Answer, answer_key, locked, opened, read_log, write_answer

MARKS = ("", " ", "▁", "Ġ")  # how a token shows the space before it


@dataclass(frozen=True)
class LetterAnswers:
    """What the server said.

    Attributes:
        logprobs: for each prompt float64 ``[K]``, the log-probability of each letter in nats, over
            the whole vocabulary; NaN where the letter was not among the top ones.
        prompt_tokens, completion_tokens: as the server counted (0 where it does not), over the
            distinct prompts, those answered earlier included. Requests that brought no answer do
            not count.
        asked: distinct prompts answered now.
        known: distinct prompts whose answers were in the log.
    """

    logprobs: list[NDArray[np.float64]]
    prompt_tokens: int
    completion_tokens: int
    asked: int
    known: int


def ask_letters(
    endpoint: Endpoint,
    prompts: Sequence[str],
    letters: Sequence[Sequence[str]],
    log: Path,
    *,
    on_answer: Callable[[int], None] | None = None,
) -> LetterAnswers:
    """Ask a server how likely each letter is to follow each prompt.

    Answers are appended to `log` as they come; what is in it already is not asked again, also after
    Ctrl-C or an error. The first prompt is asked alone, so that a refused key or a server without
    log-probabilities costs one request. Two things are asked in another way after the server's
    word: ``max_tokens`` is called ``max_completion_tokens`` from when a server demands that name
    (newer OpenAI models); and where a model would end its text at once, and the server therefore
    gives no log-probabilities at all (llama-cpp-python), the prompt is asked once more with
    ``min_tokens: 1``. If that brings nothing either, all its letters are NaN.

    Args:
        endpoint: the server and the model.
        prompts: one for each question and rotation; equal ones are asked once.
        letters: for each prompt its options' letters ``[K]``, such as A to D. Capitals and small
            letters differ.
        log: a JSONL file, made if need be. Each line holds the SHA-256 of server, model, api, top
            and prompt as key, the top tokens with their log-probabilities, and the token counts.
        on_answer: called with the number of distinct prompts answered so far, those in the log
            included (from another thread when this is called inside a running event loop).

    Raises:
        InputError: httpx or tenacity is not installed; the key was refused or is not there; no
            server, no model, or no log-probabilities there; the server failed `attempts` times; a
            prompt is refused; the log is broken or another process writes to it. The message says
            how many answers are kept.
    """
    if len(prompts) != len(letters):
        raise ValueError(f"{len(prompts)} prompts, but letters for {len(letters)}")
    for package in ("httpx", "tenacity"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"Asking a server needs the package {package}: pip install 'lessonplan[labels]'"
            )
    keys = [
        answer_key(endpoint.base, endpoint.model, endpoint.api, endpoint.top, prompt)
        for prompt in prompts
    ]
    secret, variable = secret_of(endpoint)
    with locked(log):
        answers = read_log(log)
        wanted = dict(zip(keys, prompts, strict=True))
        pending = {key: prompt for key, prompt in wanted.items() if key not in answers}
        known = kept = len(wanted) - len(pending)
        if on_answer is not None and known:
            on_answer(known)
        if pending:
            with opened(log) as file:

                def keep(key: str, answer: Answer) -> None:
                    nonlocal kept
                    write_answer(file, key, answer)
                    answers[key] = answer
                    kept += 1
                    if on_answer is not None:
                        on_answer(kept)

                try:
                    _run(ask_all(endpoint, secret, variable, pending, keep))
                except InputError as error:
                    if not kept:
                        raise
                    raise InputError(
                        f"{error} {kept} of {len(wanted)} answers are kept in {log}; the same "
                        "command goes on from there."
                    ) from None
    return LetterAnswers(
        [
            letter_logprobs(answers[key].tokens, options)
            for key, options in zip(keys, letters, strict=True)
        ],
        sum(answers[key].prompt_tokens for key in wanted),
        sum(answers[key].completion_tokens for key in wanted),
        len(pending),
        known,
    )


def letter_logprobs(tokens: Mapping[str, float], letters: Sequence[str]) -> NDArray[np.float64]:
    """Return the log-probability of each letter, from those of the top tokens.

    A letter is the token of that letter alone, with or without a space before it in any way that
    servers write it (``"A"``, ``" A"``, ``"▁A"``, ``"ĠA"``); the probabilities of these add up.

    Args:
        tokens: log-probabilities in nats by token.
        letters: ``[K]``.

    Returns:
        float64 ``[K]`` in nats, NaN for a letter that is not among the tokens.
    """
    found = [[tokens[m + letter] for m in MARKS if m + letter in tokens] for letter in letters]
    # Rounding can bring a sum of probabilities a hair above 1.
    return np.array(
        [min(float(np.logaddexp.reduce(f)), 0.0) if f else np.nan for f in found], dtype=np.float64
    )


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, in a thread of its own where an event loop is running already."""
    if not _in_event_loop():
        asyncio.run(main)
        return
    failure: list[BaseException] = []
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def traced() -> None:
        started.append((asyncio.get_running_loop(), asyncio.current_task()))
        await main

    def work() -> None:
        try:
            asyncio.run(traced())
        except BaseException as error:  # raised again below, in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=work, name="lessonplan-endpoint")
    thread.start()
    try:
        # Not one long wait: a signal that reaches another thread does not wake this one.
        while thread.is_alive():
            thread.join(0.1)
    except BaseException:  # Ctrl-C arrives here, and the thread knows nothing of it
        for loop, task in started:
            if task is not None and not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if failure:
        raise failure[0]


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
