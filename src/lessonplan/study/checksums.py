"""Checksums of a finished run's files: what is not as it was written is found and named.

They stand in the run's folder, in a file that ``sha256sum --check SHA256SUMS`` understands.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from lessonplan.study.files import write_text

SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """List the files of a folder."""
    _write(folder, {file.relative_to(folder).as_posix(): _sum(file) for file in _files(folder)})


def add_sum(folder: Path, name: str, content: Path) -> None:
    """List one more file of a folder.

    To be called before the file gets its name: then none is ever there without being listed, and a
    kill in between leaves a file that is listed and missing, as one that was deleted.

    Args:
        name: of the file, relative to the folder.
        content: the file that will get this name.
    """
    _write(folder, _read(folder) | {name: _sum(content)})


def faults(folder: Path, *, adapters: bool) -> list[str]:
    """Return what is not as it was written in a finished run's folder, one sentence each.

    Evaluations and adapters may be deleted: the former are made again, the latter take room.

    Args:
        adapters: check the adapters as well, nearly all of the bytes.
    """
    if not (folder / SUMS).is_file():
        return [f"{folder / SUMS} is missing, so the files beside it cannot be checked."]
    try:
        listed = _read(folder)
    except ValueError:
        return [f"{folder / SUMS} is not as it was written."]
    found = []
    for name, checksum in listed.items():
        file, adapter = folder / name, name.startswith("adapter")
        if not file.is_file():
            if not (adapter or name.startswith("evaluations/")):
                found.append(f"{file} is gone.")
        elif (adapters or not adapter) and _sum(file) != checksum:
            found.append(f"{file} is not as it was written.")
    for file in _files(folder):
        if file.relative_to(folder).as_posix() not in listed:
            found.append(f"{file} is not listed in {SUMS}.")
    return found


def _files(folder: Path) -> list[Path]:
    hidden = (SUMS, ".")  # a file system's own files begin with a point
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(hidden))


def _read(folder: Path) -> dict[str, str]:
    """Return the checksum of each file by name; raises ValueError where the list is broken."""
    text = (folder / SUMS).read_text(encoding="utf-8")
    lines = [line.partition("  ") for line in text.splitlines()]
    if not text.endswith("\n") or any(len(checksum) != 64 for checksum, _, _ in lines):
        raise ValueError(f"{folder / SUMS} is cut short or is no list of checksums")
    return {name: checksum for checksum, _, name in lines}


def _write(folder: Path, listed: dict[str, str]) -> None:
    lines = [f"{checksum}  {name}\n" for name, checksum in sorted(listed.items())]
    write_text(folder / SUMS, "".join(lines))


def _sum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
