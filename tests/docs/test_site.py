"""The documentation site: built strictly, complete, and without anything from the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra docs")

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^\s\">]+")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a broken link, anchor or docstring ends the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def packages() -> list[str]:
    source = ROOT / "src" / "lessonplan"
    return [
        "lessonplan",
        "lessonplan.orders",
        *(f"lessonplan.{p.parent.name}" for p in source.glob("*/__init__.py")),
    ]


@pytest.mark.parametrize("package", sorted(packages()))
def test_every_public_name_is_in_the_reference(site: Path, package: str) -> None:
    page = (site / "reference" / f"{package.rpartition('.')[2]}.html").read_text()
    headings = set(re.findall(r'<h2 id="([\w.]+)"', page))
    names = getattr(import_module(package), "__all__", [])
    missing = [n for n in names if not any(h.rpartition(".")[2] == n for h in headings)]
    assert not missing
    assert len(headings) == len(names)


def test_every_command_is_in_the_reference(site: Path) -> None:
    import typer

    from lessonplan.cli import app

    page = (site / "reference" / "command-line.html").read_text()
    headings = re.findall(r"<h[23] id=\"[\w-]+\"><code>([\w -]+)</code>", page)
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {})
        for path in [f"lessonplan {name}", *(f"lessonplan {name} {i}" for i in inner)]:
            assert path in headings
        for leaf in inner.values() if inner else [command]:
            for option in (o for p in leaf.params for o in p.opts if o.startswith("--")):
                assert option in page, f"{name} {option}"


def test_every_key_of_a_study_file_is_in_the_reference(site: Path) -> None:
    from lessonplan.study import Study

    page = (site / "reference" / "study-file.html").read_text()
    listed = set(re.findall(r"<tr>\s*<td[^>]*><code>(\w+)</code></td>", page))
    schema = Study.model_json_schema()
    keys = {
        key for group in [schema, *schema["$defs"].values()] for key in group.get("properties", {})
    }
    assert len(keys) > 60
    assert keys <= listed


def test_nothing_comes_from_the_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    found = {
        match
        for page in pages
        for match in FETCHED.findall(page.read_text(encoding="utf-8"))
        if 'rel="canonical"' not in match
    }
    assert not found
