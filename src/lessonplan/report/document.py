"""The frame of a page: look and behaviour stand in page.css and page.js, and both go into it."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from importlib.resources import files


@cache
def _asset(name: str) -> str:
    return files("lessonplan.report").joinpath(name).read_text(encoding="utf-8")


def document(title: str, body: str) -> str:
    """Return a whole HTML file that loads nothing and runs no script but its own.

    Args:
        title: plain text. body: HTML.
    """
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_asset('page.css')}</style></head>\n"
        f"<body>{body}\n<script>{script}</script></body></html>\n"
    )
