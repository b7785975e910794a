"""The code blocks of a Markdown page, and how each is run or checked.

| block | what becomes of it |
|---|---|
| ```python | runs, in one namespace a page |
| ```console | the lines after `$ ` run in Bash; the others are their output |
| ```bash | runs as it stands |
| ```yaml | must be a study file, or a part of one |
| title="NAME" | is written to NAME before the blocks after it run |
| {.no-run reason="WHY"} | does not run; its commands must still parse |
| ```text and others | stand for themselves |
| indented | is not run; its commands must parse |

All of a page runs in one scratch folder, from top to bottom; `docs` and `examples` are there.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
INFO = re.compile(r"(?P<language>[\w-]*)\s*(?P<rest>.*)")


@dataclass(frozen=True)
class Block:
    """A code block: where it stands, what it is, and its text."""

    page: Path
    line: int  # of its first line of text, 1-based
    language: str  # "" where none is said; "indented" for a block without fences
    text: str
    title: str | None = None
    runs: bool = True
    reason: str | None = None

    @property
    def place(self) -> str:
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a page, in lists and admonitions too."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "code_block":
            assert token.map
            yield Block(page, token.map[0] + 1, "indented", token.content, runs=False)
        if token.type == "fence":
            assert token.map
            found = INFO.fullmatch(token.info.strip())
            assert found, f"{page}:{token.map[0] + 1}: {token.info!r} is no info string"
            settings = dict(re.findall(r'(\w+)="([^"]*)"', found["rest"]))
            yield Block(
                page,
                token.map[0] + 2,
                found["language"],
                token.content,
                title=settings.get("title"),
                runs=".no-run" not in found["rest"],
                reason=settings.get("reason"),
            )


def run_page(page: Path, names: dict[str, Any]) -> None:
    """Run all blocks of a page in the present folder, where the checkout's files seem to stand."""
    for folder in ("docs", "examples"):
        Path(folder).symlink_to(ROOT / folder)
    names |= {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "indented":
            check_commands(block)
        else:
            run(block, names)


def run(block: Block, names: dict[str, Any]) -> None:
    """Run or check a block in the present folder."""
    if block.title is not None:
        Path(block.title).write_text(block.text, encoding="utf-8")
    if not block.runs or block.language in ("bash", "console", "sh", "shell"):
        check_commands(block)
    if not block.runs:
        return
    if block.language == "python":
        # Line numbers of a traceback are those of the page.
        code = "\n" * (block.line - 1) + block.text
        exec(compile(code, str(block.page), "exec"), names)
    elif block.language in ("bash", "console"):
        run_in_bash(block)
    elif block.language == "yaml":
        check_study(block)


def commands(block: Block) -> list[str]:
    """Return the commands of a block: in a console, those after the prompt."""
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        return re.findall(r"^\$ (.*)$", text, re.MULTILINE)
    return text.splitlines()


def run_in_bash(block: Block) -> None:
    script = "\n".join(commands(block))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=os.environ | {"PATH": path, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{block.place}: status {done.returncode}\n{done.stdout[-3000:]}"


def check_commands(block: Block) -> None:
    """Check that `lessonplan` knows a block's commands with their options, and make its targets."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(block):
        words = shlex.split(command, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets, f"{block.place}: make has no target {words[1]}"
        if words[:1] == ["lessonplan"]:
            problem = misuse(words[1:])
            assert not problem, f"{block.place}: {command}\n{problem}"


def misuse(words: list[str]) -> str | None:
    """Return what is wrong with a command line, without doing what it says."""
    import typer

    from lessonplan.cli import app

    command: Any = typer.main.get_command(app)
    words = words[: words.index("|")] if "|" in words else words
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return f"{' '.join(words[:1]) or 'nothing'} is no command of {command.name}"
        command, *words = command.commands[words[0]], *words[1:]
    if "--help" in words:
        return None
    try:
        command.make_context(command.name, words)
    except Exception as error:
        return getattr(error, "message", None) or str(error)
    return None


def check_study(block: Block) -> None:
    """Check a block against the model of a study file; what a part of one lacks is filled in."""
    from lessonplan.study import load_study

    path = Path(block.title or "block.yaml")
    path.write_text(block.text, encoding="utf-8")
    keys = re.findall(r"^(\w+):", block.text, re.MULTILINE)
    rest = {
        "training": "training: {data: icd10cm, split: train}\n",
        "evaluation": "evaluation: {data: icd10cm, split: test}\n",
    }
    missing = "".join(text for key, text in rest.items() if key not in keys)
    if block.title is None:
        path.write_text(block.text + missing, encoding="utf-8")
    load_study(path)
