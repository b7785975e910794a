"""A model on a server: its address, and the key for it."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import SplitResult, urlsplit

from lessonplan.errors import InputError

Api = Literal["completions", "chat"]

KEY_VARIABLE = "LESSONPLAN_API_KEY"
# OpenAI's own variable is set on many machines, so a key in it goes to OpenAI's host alone.
OPENAI_VARIABLE, OPENAI_HOST = "OPENAI_API_KEY", "api.openai.com"

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
        split_address(self.url)
        check_key_variable(self.key_variable)
        if self.api not in get_args(Api):
            raise InputError(f"api must be one of {', '.join(get_args(Api))}, not {self.api!r}.")
        for name in ("concurrency", "attempts", "top"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("timeout", "per_minute"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} must be a number above 0, not {value}.")

    @property
    def base(self) -> str:
        """The address without a slash at its end."""
        return self.url.rstrip("/")

    @property
    def host(self) -> str:
        return split_address(self.url).hostname or ""


def check_key_variable(name: str | None) -> None:
    """Refuse what is no variable's name, without showing it.

    Raises:
        InputError: it is none.
    """
    if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise InputError(
            "key_variable is the name of an environment variable, in capitals, such as "
            f"{KEY_VARIABLE}. It is not shown here, since it may be the key itself."
        )


def parse_endpoint(spec: str) -> Endpoint | None:
    """Return the endpoint that ``NAME@http://host:8000/v1`` means, or None for any other text.

    Raises:
        InputError: an address without a name, or one that `Endpoint` refuses.
    """
    found = _ADDRESS.fullmatch(spec)
    if found:
        return Endpoint(found["name"], found["url"])
    if re.match(r"https?://", spec, re.IGNORECASE):
        split_address(spec)  # says so if it holds a password, before anything is printed
        raise InputError(f"{spec} does not say which model to ask there. Write NAME@{spec}.")
    return None


def split_address(url: str) -> SplitResult:
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


class Secret(str):
    """A key that debuggers and tracebacks with variables do not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'[key]'"


def secret_of(endpoint: Endpoint) -> tuple[Secret | None, str]:
    """Return the key, or None, and the variable that it is in or should be in."""
    parts = split_address(endpoint.url)
    openai = parts.hostname == OPENAI_HOST and parts.scheme == "https"
    variable = endpoint.key_variable or KEY_VARIABLE
    if variable == OPENAI_VARIABLE and not openai:
        raise InputError(
            f"The key in {OPENAI_VARIABLE} goes to https://{OPENAI_HOST} alone, not to "
            f"{parts.hostname}. Put that server's key into {KEY_VARIABLE}."
        )
    if endpoint.key_variable is None and openai and not os.environ.get(KEY_VARIABLE):
        variable = OPENAI_VARIABLE
    secret = Secret(os.environ.get(variable, "").strip())
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
