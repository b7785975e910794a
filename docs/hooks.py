"""What MkDocs cannot do by itself: pages made of the program, and folders in the navigation.

`reference/command-line.md` is made of the commands, `reference/study-file.md` of the settings and
their docstrings, and a page for each package in `PACKAGES`, so that none can be out of date.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe
from mkdocs.structure.files import File
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

PACKAGES = (
    "lessonplan",
    "lessonplan.data",
    "lessonplan.labels",
    "lessonplan.orders",
    "lessonplan.models",
    "lessonplan.training",
    "lessonplan.evaluation",
    "lessonplan.study",
    "lessonplan.statistics",
    "lessonplan.report",
    "lessonplan.integrations",
)


def on_config(config: Any) -> Any:
    """Write out `folder/*` in the navigation."""
    named = re.findall(r"[\w/-]+\.md", str(config.nav))
    made = [file_name(package) for package in PACKAGES]

    def written_out(entries: list[Any]) -> list[Any]:
        pages: list[Any] = []
        for entry in entries:
            if isinstance(entry, dict):
                pages += [
                    {title: written_out(inner) if isinstance(inner, list) else inner}
                    for title, inner in entry.items()
                ]
            elif entry.endswith("/*"):
                folder = Path(config.docs_dir) / entry[:-2]
                found = sorted(
                    p.relative_to(config.docs_dir).as_posix() for p in folder.glob("*.md")
                )
                found += [name for name in made if name.startswith(entry[:-1])]
                pages += [page for page in found if page not in named]
            else:
                pages.append(entry)
        return pages

    config.nav = written_out(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    pages = {"reference/command-line.md": command_line(), "reference/study-file.md": study_file()}
    pages |= {file_name(package): package_page(package) for package in PACKAGES}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def file_name(package: str) -> str:
    return f"reference/{package.rpartition('.')[2]}.md"


def package_page(package: str) -> str:
    """Return the reference of a package: its docstring, and every name in its `__all__`."""
    module = import_module(package)
    head = inspect.getdoc(module) or ""
    paths = [path(module, name) for name in getattr(module, "__all__", [])]
    return "\n\n".join([f"# {package}", head, *(f"::: {path}" for path in paths)])


def path(module: ModuleType, name: str) -> str:
    """Return a name's path; its home's where a module has its name (`statistics.verdict`)."""
    inner = pkgutil.iter_modules(getattr(module, "__path__", []))
    taken = any(found.name == name for found in inner)
    home = getattr(module, name).__module__ if taken else module.__name__
    return f"{home}.{name}"


class JointNames(griffe.Extension):
    """Lets docstrings describe several names at once: `low, high: the interval.`"""

    ENTRY = re.compile(r"^( +)(\w+(?:, \w+)+):( .*(?:\n\1 +\S.*)*)", re.MULTILINE)

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = self.ENTRY.sub(
                lambda m: "\n".join(f"{m[1]}{name}:{m[3]}" for name in m[2].split(", ")),
                obj.docstring.value,
            )


# ---- The command line ----------------------------------------------------------------------------

COMMANDS = """\
# Command line

Bad input ends in one message and status 2. Runs that failed, and a full disk, end in status 1.

What `-o` names has to be new or empty; `--overwrite` replaces a file, or the report in a folder
(other files there are left alone), but no adapter. It is looked at before the work begins, and a
file that was there stays until the new one is whole. A file that a command reads is never written
over. A study's folder is its own: `study` goes on there, and `report` writes its report anew.

`--column OURS=THEIRS` names a column of DATA in every command that reads one; columns that are
called as ours need none. Of a file, `order` reads `category`, `difficulty` and, to join `--labels`,
`id`. A label table has the columns that `lessonplan label` writes: `id`, `category`, `difficulty`.

An option that would have no effect is an error.
"""


def command_line() -> str:
    """Return a page with the arguments and options of every command, as Typer describes them."""
    typer = [sys.executable, "-m", "typer", "lessonplan.cli", "utils", "docs"]
    text = subprocess.run(
        [*typer, "--name", "lessonplan"], capture_output=True, text=True, check=True
    ).stdout
    text = text[text.index("\n## ") :]
    # Every command has --help, and the commands of a group have sections of their own.
    text = text.replace("* `--help`: Show this message and exit.\n", "")
    text = re.sub(r"\*\*Commands\*\*:\n.*?(?=\n#|\Z)", "", text, flags=re.DOTALL)
    text = re.sub(r"\*\*Options\*\*:\s*(?=#|\Z)", "", text)
    return COMMANDS + text.replace("```console\n$ ", "```text\n")


# ---- The study file ------------------------------------------------------------------------------

INTRODUCTION = """\
# Study file

A study is one YAML file. Only `training` and a set to evaluate on are needed; every other key has a
default. An unknown key is an error that names its line and the nearest known key. `lessonplan study
FILE -o DIR --set KEY.KEY=VALUE` replaces single values, and `DIR/study.yaml` is the file with all
defaults filled in.

Where a list is expected, one value does; where a group is expected, a plain string stands for its
first key: `training: train.csv` is `training: [{data: train.csv}]`. Data and label files are looked
up beside the study file first.

```yaml
models: [smollm2-135m]
training: {data: icd10cm, split: train, sample: 320}
evaluation: {data: icd10cm, split: test, sample: 200}
strategies: [random, interleaved, {strategy: curriculum, bands: 3}]
seeds: 3
recipe: {loss: choice, learning_rate: 1.0e-3, adapter: {layers: 8}}
```
"""


def study_file() -> str:
    """Return a page with every key of a study file: its values, default and meaning."""
    from lessonplan.study import config, sources
    from lessonplan.training import recipe

    groups: list[tuple[str, type[BaseModel]]] = [
        ("The study", config.Study),
        ("models", config.ModelSpec),
        ("A set of questions", config.DataSpec),
        ("training", config.TrainingSpec),
        ("strategies", config.ArmSpec),
        ("labels", sources.LabelSpecs),
        ("A label source", sources.LabelSpec),
        ("endpoint", sources.EndpointSpec),
        ("cluster", sources.ClusterSpec),
        ("recipe", recipe.Recipe),
        ("recipe.adapter", recipe.Adapter),
        ("scoring", recipe.Scoring),
        ("checkpoints", config.CheckpointSpec),
        ("resources", config.ResourceSpec),
    ]
    sections = {spec.__name__: title for title, spec in groups}
    text = [INTRODUCTION]
    for title, spec in groups:
        said, schema = meanings(spec), spec.model_json_schema()
        rows = [
            f"| `{name}` | {kind(schema['properties'][name], schema.get('$defs', {}), sections)} "
            f"| {start(spec.model_fields[name])} | {said[name]} |"
            for name in spec.model_fields
            if name in spec.__annotations__
        ]
        head = (inspect.getdoc(spec) or "").partition("\n\n")[0]
        base = spec.__mro__[1].__name__
        if base in sections:
            head += f" Beside these keys, those of {link(sections[base])}."
        text += [
            f"## {title}",
            head,
            "\n".join(["| key | values | default | |", "|:--|:--|:--|:--|", *rows]),
        ]
    return "\n\n".join(text)


def meanings(spec: type[BaseModel]) -> dict[str, str]:
    """Return what the docstring of a group of settings says of each.

    Raises:
        ValueError: a setting has no words.
    """
    text = inspect.getdoc(spec) or ""
    found: dict[str, str] = {}
    for section in griffe.Docstring(text, parser="google").parse(warnings=False):
        if section.kind is griffe.DocstringSectionKind.attributes:
            for entry in section.value:
                found[entry.name] = " ".join(entry.description.split()).replace("|", "\\|")
    lacking = [n for n in spec.model_fields if n in spec.__annotations__ and n not in found]
    if lacking:
        raise ValueError(f"{spec.__name__}: no words on {', '.join(lacking)} in its docstring")
    return found


def kind(schema: dict[str, Any], defs: dict[str, Any], sections: dict[str, str]) -> str:
    """Return what values a JSON schema takes, in words, with links to the sections of groups."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in sections:
            return link(sections[name])
        schema = defs[name]
    if "anyOf" in schema:
        kinds = [kind(s, defs, sections) for s in schema["anyOf"] if s.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}), defs, sections)}"
    if isinstance(schema.get("additionalProperties"), dict) and schema["additionalProperties"]:
        return f"name: {kind(schema['additionalProperties'], defs, sections)}"
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [
        f"{sign} {schema[key]}"
        for key, sign in signs.items()
        if key in schema and abs(schema[key]) < 2**31
    ]
    words = {"string": "text", "boolean": "true, false", "object": "keys", "integer": "integer"}
    return " ".join([words.get(schema.get("type", ""), "number"), *limits])


def link(title: str) -> str:
    """Return a link to a section of the page."""
    return f"[{title[0].lower()}{title[1:]}](#{title.lower().replace(' ', '-').replace('.', '')})"


def start(field: Any) -> str:
    """Return a setting's default in YAML's words."""
    value = field.default
    if value is PydanticUndefined:
        return "needed"
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list) and isinstance(value[0], BaseModel):
        return ", ".join(f"`{entry.title}`" for entry in value)
    if isinstance(value, dict):
        return ", ".join(f"`{name}`" for name in value)
    return f"`{value}`"
