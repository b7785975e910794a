"""Letters' probabilities from a server that speaks OpenAI's protocol.

vLLM, llama.cpp's server, llama-cpp-python's server and OpenAI itself say how likely the next token
is to be each of a few top ones. Asked after a multiple-choice prompt, they say how likely each
option's letter is. Every answer goes to the log (`lessonplan.labels.log`) the moment it comes.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import SplitResult, urlsplit

import numpy as np
from numpy.typing import NDArray

from lessonplan.errors import InputError, first_line
from lessonplan.labels.log import Answer, answer_key, locked, opened, read_log, write_answer

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

Api = Literal["completions", "chat"]

KEY_VARIABLE = "LESSONPLAN_API_KEY"
# OpenAI's own variable is set on many machines, so a key in it goes to OpenAI's host alone.
OPENAI_VARIABLE, OPENAI_HOST = "OPENAI_API_KEY", "api.openai.com"

MARKS = ("", " ", "▁", "Ġ")  # how a token shows the space before it
TRY_AGAIN = (408, 409, 429)  # beside every 5xx
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the second try, and at most
LONGEST_RETRY_AFTER = 120.0  # seconds: a server can ask for hours
UNLIKELY = -9000.0  # servers write -9999 for "not among the top ones"

_ADDRESS = re.compile(r"(?P<name>.*?)@(?P<url>[A-Za-z][A-Za-z0-9+.-]*://.*)", re.DOTALL)


@dataclass(frozen=True)
class Endpoint:
    """A model on a server.

    Attributes:
        model: the model's name there.
        url: the base, such as ``http://localhost:8000/v1``, with a slash at its end or without.
        api: "completions" continues the prompt as it is; "chat" sends it as a user's message, which
            the server puts into the model's chat template.
        key_variable: the environment variable that holds the key; None takes LESSONPLAN_API_KEY
            (or OPENAI_API_KEY, for https://api.openai.com alone).
        concurrency: requests under way at the same time.
        per_minute: the most requests a minute, spaced evenly; None for no limit.
        timeout: seconds until a request counts as failed.
        attempts: tries of a request before giving up.
        top: how many log-probabilities to ask for; OpenAI gives 5 for completions and 20 for chat.

    Raises:
        InputError: a value that no server can be asked with; the address is not http(s), or has a
            password, a query or an API's path in it.
    """

    model: str
    url: str
    api: Api = "completions"
    key_variable: str | None = None
    concurrency: int = 8
    per_minute: float | None = None
    timeout: float = 120.0
    attempts: int = 6
    top: int = 20

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise InputError("An endpoint needs the model's name on the server: NAME@URL.")
        _split(self.url)
        if self.key_variable is not None and not re.fullmatch(
            r"[A-Z_][A-Z0-9_]*", self.key_variable
        ):
            raise InputError(
                "key_variable is the name of an environment variable, in capitals, such as "
                f"{KEY_VARIABLE}. It is not shown here, since it may be the key itself."
            )
        if self.api not in get_args(Api):
            raise InputError(f"api must be one of {', '.join(get_args(Api))}, not {self.api!r}.")
        for name in ("concurrency", "attempts", "top"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("timeout", "per_minute"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} must be a number above 0, not {value}.")


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


def parse_endpoint(spec: str) -> Endpoint | None:
    """Return the endpoint that ``NAME@http://host:8000/v1`` means, or None for any other text.

    Raises:
        InputError: an address without a name, or one that `Endpoint` refuses.
    """
    found = _ADDRESS.fullmatch(spec)
    if found:
        return Endpoint(found["name"], found["url"])
    if re.match(r"https?://", spec, re.IGNORECASE):
        _split(spec)  # says so if it holds a password, before anything is printed
        raise InputError(f"{spec} does not say which model to ask there. Write NAME@{spec}.")
    return None


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
        answer_key(_base(endpoint), endpoint.model, endpoint.api, endpoint.top, prompt)
        for prompt in prompts
    ]
    secret, variable = _secret(endpoint)
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
                    _run(_ask_all(endpoint, secret, variable, pending, keep))
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


def top_tokens(body: Any) -> dict[str, float] | None:
    """Return the first position's top tokens of a completion or a chat completion.

    Args:
        body: the server's JSON. Known are OpenAI's completions (a dictionary of tokens), its chat
            completions (a list of tokens), and llama.cpp's completions, which have the latter's.

    Returns:
        Log-probabilities in nats by token; None where the text ended at once and has no position.

    Raises:
        InputError: it is no completion, or one without log-probabilities.
    """
    try:
        choice = body["choices"][0]
        shown = choice.get("logprobs")
        if not shown:
            raise InputError(_NO_LOGPROBS)
        places = shown["content"] if "content" in shown else shown["top_logprobs"]
        if places is None or (not places and choice.get("finish_reason") != "stop"):
            raise InputError(_NO_LOGPROBS)
        if not places:
            return None
        first = places[0]
        if "content" in shown:
            first = first["top_logprobs"]
        if not first:
            raise InputError(_NO_LOGPROBS)
        if isinstance(first, dict):
            pairs = list(first.items())
        else:
            pairs = [(entry["token"], entry["logprob"]) for entry in first]
        tokens: dict[str, float] = {}
        for token, value in pairs:
            value = math.nan if value is None else float(value)
            if not math.isfinite(value) or value <= UNLIKELY:
                continue
            # Different tokens can look the same: "A" and "▁A" where a server strips spaces.
            tokens[str(token)] = float(np.logaddexp(tokens.get(token, -np.inf), value))
    except (TypeError, KeyError, IndexError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "its answer is not that of an OpenAI-compatible server: "
            f"{json.dumps(body, default=str)[:150]}"
        ) from None
    # Log-probabilities to another base, or probabilities, would be misread without a sign of it.
    if sum(math.exp(min(value, 1.0)) for value in tokens.values()) > 1.05:
        raise InputError(
            "the log-probabilities that it gives are none: as natural logarithms, the top ones "
            "stand for more than 100 %."
        )
    return tokens


_NO_LOGPROBS = (
    "it gives no log-probabilities of the top tokens, which letters are read from. "
    "(llama-cpp-python needs --logits_all true; some hosted models never give them.)"
)


def _split(url: str) -> SplitResult:
    """Return the parts of a server's address, or refuse it without showing a password."""
    # Both are looked for in the text: a password can break the address, which would then be shown.
    if "@" in url:
        host = re.split(r"[/?#]", url.rpartition("@")[2])[0]
        raise InputError(
            f"The address of the server at {host} holds a user or password. Leave it out, and put "
            f"the key into the environment variable {KEY_VARIABLE}."
        )
    if "?" in url or "#" in url:
        raise InputError(
            f"The address {re.split('[?#]', url)[0]} must end with its path (such as /v1), without "
            "? or # and what follows."
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = None, None
    if parts is None or parts.scheme not in ("http", "https") or not host or " " in url:
        raise InputError(
            f"{url!r} is no address of a server. One is like http://localhost:8000/v1."
        )
    if parts.path.rstrip("/").endswith(("/completions", "/chat")):
        raise InputError(f"{url} must be the base, without the last part: end it with /v1.")
    return parts


def _base(endpoint: Endpoint) -> str:
    return endpoint.url.rstrip("/")


class _Secret(str):
    """A key that debuggers and tracebacks with variables do not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'[key]'"


def _secret(endpoint: Endpoint) -> tuple[_Secret | None, str]:
    """Return the key, or None, and the variable that it is in or should be in."""
    parts = _split(endpoint.url)
    openai = parts.hostname == OPENAI_HOST and parts.scheme == "https"
    variable = endpoint.key_variable or KEY_VARIABLE
    if variable == OPENAI_VARIABLE and not openai:
        raise InputError(
            f"The key in {OPENAI_VARIABLE} goes to https://{OPENAI_HOST} alone, not to "
            f"{parts.hostname}. Put that server's key into {KEY_VARIABLE}."
        )
    if endpoint.key_variable is None and openai and not os.environ.get(KEY_VARIABLE):
        variable = OPENAI_VARIABLE
    secret = _Secret(os.environ.get(variable, "").strip())
    if not secret:
        if endpoint.key_variable is not None:
            raise InputError(f"The environment variable {variable} is to hold a key, and is empty.")
        return None, variable
    if not re.fullmatch(r"[!-~]+", secret):
        raise InputError(
            f"What the environment variable {variable} holds is no key: it has spaces or "
            "characters beyond ASCII in it."
        )
    return secret, variable


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


class _Again(Exception):
    """A failure that may pass.

    Attributes:
        after: seconds that the server wants to be left alone, or None.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass
class _Session:
    """What the requests of one call share.

    Attributes:
        place: the request's address.
        secret, variable: the key and where it came from.
        limit: what the server calls the number of tokens to generate.
        next_turn: when the next request may start, in the event loop's seconds.
    """

    endpoint: Endpoint
    client: httpx.AsyncClient
    place: str
    secret: _Secret | None
    variable: str
    limit: str = "max_tokens"
    next_turn: float = 0.0


async def _ask_all(
    endpoint: Endpoint,
    secret: _Secret | None,
    variable: str,
    pending: Mapping[str, str],
    keep: Callable[[str, Answer], None],
) -> None:
    """Ask the prompts, by key, and hand each answer to `keep` as it comes."""
    import httpx

    path = "completions" if endpoint.api == "completions" else "chat/completions"
    # A proxy meant for the world outside does not know this machine's own servers.
    local = _split(endpoint.url).hostname in ("localhost", "127.0.0.1", "::1")
    client = httpx.AsyncClient(
        headers={"Authorization": f"Bearer {secret}"} if secret else {},
        timeout=None,  # a request as a whole is timed instead
        follow_redirects=False,
        limits=httpx.Limits(max_connections=endpoint.concurrency),
        trust_env=not local,
    )
    async with client:
        session = _Session(endpoint, client, f"{_base(endpoint)}/{path}", secret, variable)
        left = iter(pending.items())

        async def work(most: int | None = None) -> None:
            for done, (key, prompt) in enumerate(left, 1):
                keep(key, await _ask(session, prompt))
                if done == most:
                    return

        await work(most=1)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(endpoint.concurrency, len(pending) - 1)):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None


async def _ask(session: _Session, prompt: str) -> Answer:
    body = await _request(session, prompt, {})
    tokens = _tokens(session, body)
    if tokens is None:
        try:
            body = await _request(session, prompt, {"min_tokens": 1})
        except _Refused:  # the server does not know min_tokens
            return Answer({}, *_usage(body))
        tokens = _tokens(session, body)
    return Answer(tokens or {}, *_usage(body))


def _tokens(session: _Session, body: Any) -> dict[str, float] | None:
    try:
        return top_tokens(body)
    except InputError as error:
        raise InputError(f"{session.place}: {_redacted(str(error), session)}") from None


class _Refused(InputError):
    """The server calls the request itself wrong (status 400 or 422)."""


async def _request(session: _Session, prompt: str, extra: Mapping[str, int]) -> Any:
    """Return the server's JSON for a prompt, trying again what may pass."""
    import tenacity

    retrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(session.endpoint.attempts),
        wait=_wait,
        retry=tenacity.retry_if_exception_type(_Again),
        reraise=True,
    )
    try:
        return await retrying(_send, session, prompt, extra)
    except _Again as again:
        raise InputError(
            f"{session.place} did not answer in {session.endpoint.attempts} tries; at the last, "
            f"{again}"
        ) from None


def _wait(state: RetryCallState) -> float:
    """Return seconds until the next try: what the server asked for, or longer each time."""
    failure = state.outcome.exception() if state.outcome is not None else None
    after = failure.after if isinstance(failure, _Again) else None
    if after is not None:
        # A little apart, or all that were sent away together come back together.
        return min(after, LONGEST_RETRY_AFTER) * random.uniform(1.0, 1.1)
    return min(FIRST_WAIT * 2.0 ** (state.attempt_number - 1), LONGEST_WAIT) * random.uniform(1, 2)


async def _send(session: _Session, prompt: str, extra: Mapping[str, int]) -> Any:
    import httpx

    endpoint = session.endpoint
    limit = session.limit
    request: dict[str, Any] = {"model": endpoint.model, limit: 1, "temperature": 0, **extra}
    if endpoint.api == "completions":
        request |= {"prompt": prompt, "logprobs": endpoint.top}
    else:
        request["messages"] = [{"role": "user", "content": prompt}]
        request |= {"logprobs": True, "top_logprobs": endpoint.top}

    await _turn(session)
    try:
        async with asyncio.timeout(endpoint.timeout):
            response = await session.client.post(session.place, json=request)
    except TimeoutError:
        raise _Again(
            f"there was no answer within {endpoint.timeout:g} seconds (timeout). A slow server is "
            "asked less at a time with a lower concurrency."
        ) from None
    except httpx.InvalidURL as error:
        raise InputError(f"{session.place} is no address: {first_line(error)}") from None
    except httpx.HTTPError as error:
        # Not chained: such errors carry the request, and with it the key.
        what = _redacted(first_line(error), session)
        raise _Again(
            f"the connection failed ({type(error).__name__}: {what}). Check that the server runs "
            "and that the address is right."
        ) from None

    wants = "max_completion_tokens"
    named = response.status_code == 400 and wants in response.text
    if named and endpoint.api == "chat" and limit != wants:
        session.limit = wants
        return await _send(session, prompt, extra)
    if not response.is_success:
        raise _failure(session, response, prompt)
    try:
        return response.json()
    except (ValueError, RecursionError):
        raise InputError(
            f"{session.place} is not an OpenAI-compatible server's: it answered with "
            f"{_said(session, response)}. The base of the address often ends with /v1."
        ) from None


async def _turn(session: _Session) -> None:
    """Wait until the limit of requests a minute allows one more."""
    if session.endpoint.per_minute is None:
        return
    now = asyncio.get_running_loop().time()
    turn = max(now, session.next_turn)
    session.next_turn = turn + 60.0 / session.endpoint.per_minute
    await asyncio.sleep(turn - now)


def _failure(session: _Session, response: httpx.Response, prompt: str) -> Exception:
    """Return the error that a response of status 3xx, 4xx or 5xx ends in."""
    status, place = response.status_code, session.place
    said = _said(session, response)
    if status in (401, 403):
        # What the server says is left out: some repeat the key.
        if session.secret is None:
            return InputError(
                f"{place} wants a key (status {status}), and none was given. Put it into the "
                f"environment variable {session.variable}."
            )
        return InputError(
            f"{place} refused the key in the environment variable {session.variable} "
            f"(status {status})."
        )
    if "logprob" in said.lower():
        return InputError(
            f"{place} gives no log-probabilities, or not as many as {session.endpoint.top} (top): "
            f"{said} (status {status})."
        )
    if status in TRY_AGAIN or status >= 500:
        after = _retry_after(response.headers.get("Retry-After"))
        hint = " Ask less often, with per_minute." if status == 429 else ""
        return _Again(f"it answered with status {status} ({said}).{hint}", after)
    if status < 400:
        target = _redacted(response.headers.get("Location", "nowhere"), session)
        return InputError(
            f"{place} sends requests on to {target[:150]} (status {status}), and keys are not "
            "taken to another address. If that is the server, give its own address."
        )
    if status in (404, 405):
        return InputError(
            f"{place} does not know the address or the model {session.endpoint.model!r} (status "
            f"{status}: {said}). The base of the address often ends with /v1, and its /models "
            "lists the models."
        )
    if status in (400, 422):
        return _Refused(
            f"{place} refused the prompt that begins with {prompt[:60]!r} and has {len(prompt)} "
            f"characters (status {status}): {said}."
        )
    return InputError(f"{place} refused the request (status {status}): {said}.")


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, which holds seconds or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _said(session: _Session, response: httpx.Response) -> str:
    """Return the first line of a server's own message, at most 200 characters, without the key."""
    text = response.text.strip()
    kind = response.headers.get("Content-Type", "")
    if "html" in kind or text[:15].lower().startswith(("<!doctype", "<html")):
        return "an HTML page"
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = text
    while isinstance(body, (dict, list)) and body:
        if isinstance(body, list):
            body = body[0]
        else:
            names = ("error", "message", "detail", "msg")
            body = next((body[name] for name in names if body.get(name)), str(body))
    # Redacted before it is cut: half a key would not be found.
    lines = _redacted(str(body or ""), session).strip().splitlines()
    return lines[0][:200].rstrip(" .") if lines else "without a word"


def _redacted(text: str, session: _Session) -> str:
    return text.replace(session.secret, "[key]") if session.secret else text


def _usage(body: Any) -> tuple[int, int]:
    """Return the prompt's and the completion's tokens, 0 where the server does not count."""
    usage = body.get("usage") if isinstance(body, dict) else None
    counts = usage if isinstance(usage, dict) else {}

    def count(name: str) -> int:
        return counts[name] if isinstance(counts.get(name), int) else 0

    return count("prompt_tokens"), count("completion_tokens")
