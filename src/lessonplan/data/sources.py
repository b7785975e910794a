"""Opening what holds questions: files, folders, data sets with a name, the Hugging Face hub."""

from __future__ import annotations

import codecs
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lessonplan.data import tables
from lessonplan.errors import InputError, first_line, nearest

# What `lessonplan datasets` lists.
DATASETS = {
    "icd10cm": "built in: about 2,000 questions on ICD-10-CM, five options, chapter as category",
    "hpo": "built in: about 2,300 questions on signs (HPO), five options, body system as category",
    "medmcqa": "hub openlifescienceai/medmcqa: Indian medical entrance exams, four options",
    "medqa": "hub GBaker/MedQA-USMLE-4-options: US licensing exam, four options",
    "medqa-5": "hub bigbio/med_qa: US licensing exam, five options",
    "lek": "Polish final exam in English, five options; not public, pass your own CSV file",
}
HUB = {
    "medmcqa": "openlifescienceai/medmcqa",
    "medqa": "GBaker/MedQA-USMLE-4-options",
    "medqa-5": "bigbio/med_qa",
}


@dataclass(frozen=True)
class Raw:
    """A source before it is understood: columns as lists, and how to speak of it."""

    table: tables.Table
    source: str
    preset: str | None = None
    original: Any = None  # the Dataset itself, whose kept columns keep their types


def open_named(name: str, split: str | None) -> Raw:
    """Open what is no existing path: a preset or something on the hub."""
    if name == "lek":
        raise InputError(
            "lek is not public, so it cannot be loaded by name. Pass your CSV file with the "
            "columns prompt, A, B, C, D, E, Answer, Category, Difficulty (the share of test takers "
            "who answered right)."
        )
    if name == "medqa-5":
        return _open_medqa_5(split)
    if name in HUB:
        return _open_hub(HUB[name], split, name)
    address = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)(?:/(.+))?", name)
    if address and address[2]:
        if split is not None:
            raise InputError(f"{name} is one file and has no splits; leave out split={split!r}.")
        path = _download(address[1], address[2], name)
        return Raw(tables.read_table(path), name)
    if address:
        return _open_hub(address[1], split, name)
    if tables.table_format(name) is None and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _open_hub(name, split, name)
    folder = Path(name).parent
    siblings = [str(folder / p) for p in os.listdir(folder)] if os.path.isdir(folder) else []
    raise InputError(
        f"There is no file {name}, nor a data set of that name."
        f"{nearest(name, [*DATASETS, *siblings])} Known by name are {', '.join(DATASETS)}; a data "
        f"set on the Hugging Face hub is given as owner/name."
    )


def open_path(path: Path, split: str | None) -> Raw:
    if path.is_dir():
        # Absolute: a folder called csv would be taken for the library's reader of that name.
        return _open_hub(str(path.absolute()), split, str(path))
    if split is not None:
        raise InputError(f"{path} is one file and has no splits; leave out split={split!r}.")
    return Raw(tables.read_table(path), str(path))


def _open_hub(repository: str, split: str | None, name: str) -> Raw:
    """Load a hub repository, or a local folder in the hub's layout."""
    import datasets

    try:
        parts = datasets.load_dataset(repository, **_as_they_stand(Path(repository)))
    except datasets.exceptions.DatasetNotFoundError as error:
        raise InputError(
            f"{name}: the Hugging Face hub has no data set {repository} that you may read. "
            f"({first_line(error)})"
        ) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # The library wraps what went wrong in an error that says nothing of it.
        reason = first_line(error.__cause__ or error)
        if Path(repository).is_dir():
            raise InputError(f"The folder {name} cannot be read: {reason}") from error
        if "config name is missing" in str(error).lower():
            raise InputError(
                f"{name} has several configurations, and none can be named here. Give a file of "
                f"the one that you want: hf://datasets/{repository}/FILE."
            ) from error
        if isinstance(error, datasets.exceptions.DatasetsError):
            raise InputError(f"{name} cannot be read: {reason}") from error
        raise _unreachable(name, repository, error) from error
    raw = open_dataset(parts, split, name)
    return Raw(raw.table, raw.source, preset=name if name in HUB else None, original=raw.original)


def _as_they_stand(folder: Path) -> dict[str, Any]:
    """Return what lets the cells of a folder of CSV files be texts, as those of a single file are.

    Otherwise 007 would be 7, and an option that says "None" would be missing.
    """
    from lessonplan.data.streams import first_rows

    files = [file for file in folder.glob("**/*") if tables.table_format(file)]
    if {tables.table_format(file) for file in files} != {"csv"}:
        return {}
    names = {name for file in files for name in first_rows(file, 1)}
    return {"converters": dict.fromkeys(sorted(names), str), "keep_default_na": False}


def open_dataset(dataset: Any, split: str | None, source: str) -> Raw:
    import datasets

    if isinstance(dataset, dict):  # a DatasetDict
        if split is None and len(dataset) == 1:
            split = next(iter(dataset))
        if split not in dataset:
            found = "several splits" if split is None else f"no split {split!r}"
            raise InputError(
                f"{source} has {found}.{nearest(split or '', dataset)} "
                f"Say which one with split: {', '.join(dataset)}."
            )
        dataset, source = dataset[split], f"{source} ({split})"
    elif split is not None:
        raise InputError(f"{source} has no splits; leave out split={split!r}.")
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(
            f"{source}: expected a path, a name or a datasets.Dataset, found "
            f"{type(dataset).__name__}."
        )
    plain = dataset.with_format(None)
    columns = {}
    for name in plain.column_names:
        values, feature = list(plain[name]), plain.features[name]
        # Publishers store categories as class numbers. Answers are numbers by nature, and -1, a
        # missing answer, has no name.
        if isinstance(feature, datasets.ClassLabel) and name != "cop":
            values = [None if v is None or v < 0 else feature.int2str(v) for v in values]
        columns[name] = values
    return Raw(tables.Table(columns, None), source, original=plain)


def _open_medqa_5(split: str | None) -> Raw:
    """Read five-option MedQA out of the archive of its repository.

    Its loading script is never run (`datasets` runs none any more); the publisher's files are in
    the archive.
    """
    files = {"train": "train", "validation": "dev", "test": "test"}
    if split not in files:
        found = "several splits" if split is None else f"no split {split!r}"
        raise InputError(
            f"medqa-5 has {found}.{nearest(split or '', files)} "
            f"Say which one with split: {', '.join(files)}."
        )
    archive = _download(HUB["medqa-5"], "data_clean.zip", "medqa-5")
    wanted = f"questions/US/{files[split]}.jsonl"
    try:
        with zipfile.ZipFile(archive) as packed:
            member = next((n for n in packed.namelist() if n.endswith(wanted)), None)
            if member is None:
                raise InputError(
                    f"medqa-5: data_clean.zip of {HUB['medqa-5']} holds no {wanted} any more. "
                    f"Pass that file as a local file instead."
                )
            raw = packed.read(member)
    except zipfile.BadZipFile as error:
        raise InputError(f"medqa-5: {archive} is not a zip archive.") from error
    lines = raw.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True)
    table = tables.parse_json_lines(lines, Path(member))
    return Raw(table, f"medqa-5 ({split})", preset="medqa-5")


def _download(repository: str, filename: str, name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(huggingface_hub.hf_hub_download(repository, filename, repo_type="dataset"))
    except LocalEntryNotFoundError as error:  # neither in the cache nor to be reached
        raise _unreachable(name, repository, error) from error
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise InputError(f"{name}: the hub has no file {filename} in {repository}.") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreachable(name, repository, error) from error


def _unreachable(name: str, repository: str, error: Exception) -> InputError:
    return InputError(
        f"{name}: the Hugging Face hub could not give the data set {repository} "
        f"({type(error).__name__}: {first_line(error)}). If you have no connection, download the "
        f"file elsewhere and pass its path (.jsonl, .json, .csv, .parquet, or a folder as on the "
        f"hub) instead of the name."
    )
