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
from safetensors import SafetensorError

from lessonplan.errors import InputError


def digest(identity: Any) -> str:
    """Return a name that stands for anything that JSON can hold: 16 hexadecimal digits."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def slug(name: str) -> str:
    """Return a name as a file name that cannot leave its folder, nor be too long for one."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "set"
    return plain if len(plain.encode()) <= 100 else f"{plain[:20]}-{digest(name)}"


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with new_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, whole or not at all."""
    with new_file(path) as scratch:
        pq.write_table(table, scratch)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a scratch file that gets its final name only if all goes well."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".writing-{os.getpid()}-{path.name}")
        try:
            yield scratch
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder that gets its final name only if all goes well."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".writing-{path.name}-", dir=path.parent))
        try:
            yield scratch
            scratch.chmod(0o755)
            if path.exists():
                shutil.rmtree(path)
            scratch.rename(path)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the disk say which file it befell, and be an OSError.

    Those of a write call and of Arrow name no file; those of safetensors are of a type of its own.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


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
