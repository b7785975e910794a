"""The one error that bad input ends in, and the words that help to mend it."""

from __future__ import annotations

import difflib
import errno
import os
import re
import reprlib
from collections.abc import Iterable

# What an OSError says where a disk is full: the disk's, the user's or the process's share of it.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """Something that the user gave cannot be used: a file, a label, a key, an argument.

    The message names the place (file, row or key), what was found, what was expected and what to
    do. The command line prints it without a traceback and exits with status 2. Passwords and keys
    in it are hidden.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LESSONPLAN_API_KEY", "OPENAI_API_KEY")
# A user and password, or a key among the parameters, in an address. (A path has one slash there.)
_SECRETS = re.compile(
    r"(:/{1,2})[^\s/?#]+(?=@)|([?&][\w-]*(?:token|key|secret|password|sig)[\w-]*=)[^\s&#]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """Return a text without what a stranger must not read: passwords in addresses, and keys."""
    for variable in SECRET_VARIABLES:
        value = os.environ.get(variable, "").strip()
        if len(value) >= 8:  # shorter ones are no keys, and stand in ordinary words
            text = text.replace(value, f"[{variable}]")
    return _SECRETS.sub(lambda found: f"{found[1] or found[2]}[hidden]", text)


def nearest(name: str, known: Iterable[object]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or ``""`` when none is close."""
    matches = difflib.get_close_matches(name.lower(), {str(k).lower(): None for k in known}, n=1)
    if not matches:
        return ""
    original = next(str(k) for k in known if str(k).lower() == matches[0])
    return f" Did you mean {original!r}?"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: object) -> str:
    """Return a value as Python writes it, cut where it is long."""
    return _short.repr(value)


def counted(n: int, noun: str) -> str:
    """Return ``"1 question"`` or ``"2 questions"``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing.

    Foreign errors repeat what they read: what cannot be printed is replaced, and what is long cut.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in lines[0][:400])
