"""Files of a study: written whole or not at all, read with a word on what to do if broken."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lessonplan.errors import InputError


def digest(identity: Any) -> str:
    """Return a name that stands for anything that JSON can hold: 16 hexadecimal digits."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def slug(name: str) -> str:
    """Return a name as a file name that cannot leave its folder."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return plain or "set"


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then give it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".writing-{os.getpid()}-{path.name}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file under a temporary name, then give it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".writing-{os.getpid()}-{path.name}")
    pq.write_table(table, scratch)
    scratch.replace(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder that gets its final name only if all goes well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def read_json(path: Path) -> Any:
    """Return what a JSON file of a study holds.

    Raises:
        InputError: it is broken; says which file, and what to do.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({error}). Delete its folder to have it made again."
        ) from None


def read_table(path: Path) -> pa.Table:
    """Return what a Parquet file of a study holds.

    Raises:
        InputError: it is broken; says which file, and what to do.
    """
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is broken ({error}). Delete it to have it made again.") from None
