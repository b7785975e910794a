"""Requests to a server that speaks OpenAI's protocol: retries, limits, and what it answers."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from lessonplan.errors import InputError, first_line
from lessonplan.labels.endpoint import Endpoint, Secret
from lessonplan.labels.log import Answer

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

TRY_AGAIN = (408, 409, 429)  # beside every 5xx
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the second try, and at most
LONGEST_RETRY_AFTER = 120.0  # seconds: a server can ask for hours
UNLIKELY = -9000.0  # servers write -9999 for "not among the top ones"


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
    secret: Secret | None
    variable: str
    limit: str = "max_tokens"
    next_turn: float = 0.0


async def ask_all(
    endpoint: Endpoint,
    secret: Secret | None,
    variable: str,
    pending: Mapping[str, str],
    keep: Callable[[str, Answer], None],
) -> None:
    """Ask the prompts, by key, and hand each answer to `keep` as it comes."""
    import httpx

    path = "completions" if endpoint.api == "completions" else "chat/completions"
    # A proxy meant for the world outside does not know this machine's own servers.
    local = endpoint.host in ("localhost", "127.0.0.1", "::1")
    client = httpx.AsyncClient(
        headers={"Authorization": f"Bearer {secret}"} if secret else {},
        timeout=None,  # a request as a whole is timed instead
        follow_redirects=False,
        limits=httpx.Limits(max_connections=endpoint.concurrency),
        trust_env=not local,
    )
    async with client:
        session = _Session(endpoint, client, f"{endpoint.base}/{path}", secret, variable)
        left = iter(pending.items())
        failures: list[InputError] = []

        async def work(most: int | None = None) -> None:
            for done, (key, prompt) in enumerate(left, 1):
                try:
                    keep(key, await _ask(session, prompt))
                except InputError as error:
                    failures.append(error)
                # Nothing more is begun; what is under way is paid for, and kept.
                if failures or done == most:
                    return

        await work(most=1)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(endpoint.concurrency, len(pending) - 1)):
                    if not failures:
                        group.create_task(work())
        except BaseExceptionGroup as others:
            raise others.exceptions[0] from None
        if failures:
            raise failures[0]


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
        return top_tokens(body, lambda text: _redacted(text, session))
    except InputError as error:
        raise InputError(f"{session.place}: {error}") from None


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
    own = min(FIRST_WAIT * 2.0 ** (state.attempt_number - 1), LONGEST_WAIT) * random.uniform(1, 2)
    if after is None:
        return own
    # A little apart, or all that were sent away together come back together. A server whose clock
    # is slow names a time that is over.
    return max(own, min(after, LONGEST_RETRY_AFTER) * random.uniform(1.0, 1.1))


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


def top_tokens(body: Any, redact: Callable[[str], str] = str) -> dict[str, float] | None:
    """Return the first position's top tokens of a completion or a chat completion.

    Args:
        body: the server's JSON. Known are OpenAI's completions (a dictionary of tokens), its chat
            completions (a list of tokens), and llama.cpp's completions, which have the latter's.
        redact: takes out of a text what a message must not show, before it is cut.

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
            f"{redact(json.dumps(body, default=str))[:150]}"
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
