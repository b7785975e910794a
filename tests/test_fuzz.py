"""Input that nobody would think of: everything ends in a right result or in an `InputError`."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lessonplan import STRATEGIES, order
from lessonplan.data import count_rows, read_columns, read_questions, write_ordered
from lessonplan.data.features import COLUMNS
from lessonplan.data.tables import read_table
from lessonplan.errors import InputError
from lessonplan.labels import read_answers
from lessonplan.labels.tables import read_labels
from lessonplan.models.rows import question_texts
from lessonplan.statistics import compare
from lessonplan.study import load_study
from lessonplan.study.config import Study
from lessonplan.study.study_file import dump_study
from lessonplan.training.recipe import Adapter, Recipe, read_recipe

fuzz = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ---- Values --------------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-1, 5),
    st.sampled_from([2**31, -(2**63), 2**63, 2**64, 10**30, 10**400]),
    st.floats(),
)
# All of Unicode, with NUL, and halves of characters, which only JSON and YAML can write down.
texts = st.one_of(
    st.sampled_from(
        ["", " ", "A", "b", "e", "0", "1", "007", "nan", "1e999", "true", "[", '["a", "b"]']
    ),
    st.text(max_size=8),
    st.sampled_from(["\0", "\ud83d", "\u2028", "\r", "a\nb", '"', "é", "‏שלום", "👩‍⚕️"]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)
names = st.one_of(st.sampled_from([*COLUMNS, "line", "seed", "arm", "correct", "m"]), texts)
good = st.builds(
    lambda i, answer, difficulty, category: {
        "id": f"q{i}",
        "question": f"Question {i}?",
        "options": ["one", "two", "three"],
        "answer": answer,
        "difficulty": difficulty,
        "category": category,
        "m": answer,
    },
    st.integers(0, 9),
    st.sampled_from("ABC"),
    st.floats(0, 1),
    st.sampled_from("xyz"),
)
# A good row of which something is missing, odd or too much.
odd_rows = st.builds(
    lambda row, lost, odd: {k: v for k, v in (row | odd).items() if k not in lost},
    good,
    st.sets(names, max_size=1),
    st.dictionaries(names, values, max_size=2),
)


answers = st.fixed_dictionaries(
    {"id": st.sampled_from(["q0", "q1", "q2", "q3"]), "gpt": st.sampled_from("ABCE")},
    optional={f"human {i}": st.sampled_from([0, 1, None]) for i in range(12)},
)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Questions with labels, answers, or results; of which, maybe, one value or row is odd."""
    kind = draw(st.sampled_from(["questions", "questions", "answers", "results"]))
    if kind == "results":
        table = [
            {"id": f"q{i}", "arm": arm, "seed": seed, "correct": draw(st.integers(0, 1))}
            for i in range(2)
            for arm in "AB"
            for seed in range(2)
        ]
    else:
        row = good if kind == "questions" else answers
        table = draw(st.lists(row, min_size=1, max_size=4, unique_by=lambda row: row["id"]))
    odd = draw(st.sampled_from(["nothing", "nothing", "value", "row"]))
    if odd == "value":
        draw(st.sampled_from(table))[draw(names)] = draw(values)
    return [*table, draw(odd_rows)] if odd == "row" else table


# ---- Files ---------------------------------------------------------------------------------------


@st.composite
def json_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """JSON lines or a list, of which a line may be anything."""
    written = [json.dumps(row) for row in draw(tables())]
    if not draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(written)))
        odd = draw(
            st.one_of(
                values.map(json.dumps),
                st.text(max_size=10),
                st.sampled_from(['{"id": 1, "id": 2}', "[" * 2000, "9" * 5000, "", "{", "NaN"]),
                st.integers(0, 60).map(lambda n: json.dumps({"id": "q1", "question": "Q?"})[:n]),
            )
        )
        written.insert(at, odd)
    if draw(st.booleans()):
        return "t.json", ("[" + ",\n".join(written) + "]").encode("utf-8", "surrogatepass")
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return "t.jsonl", end.join(written).encode("utf-8", "surrogatepass")


@st.composite
def csv_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """CSV as a program writes it, or with ragged rows and quotes anywhere."""
    rows = draw(tables())
    header = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name, "") for name in header] for row in rows]
    if draw(st.booleans()):
        at = draw(st.integers(0, len(cells)))
        cells.insert(at, draw(st.lists(texts, max_size=7)))
        header += draw(st.lists(names, max_size=1))
    lines = [[c if isinstance(c, str) else json.dumps(c) for c in row] for row in [header, *cells]]
    if draw(st.integers(0, 3)):
        file = io.StringIO(newline="")
        csv.writer(file).writerows(lines)
        text = file.getvalue()
    else:
        comma = draw(st.sampled_from([",", ";", "\t"]))
        text = "\n".join(comma.join(line) for line in lines)
    return "t.csv", text.encode("utf-8", draw(st.sampled_from(["surrogatepass", "replace"])))


ARROW = [
    pa.nulls(3),
    pa.array([True, None, False]),
    pa.array([1, -1, None], pa.int8()),
    pa.array([2**64 - 1, 0, 1], pa.uint64()),
    pa.array([float("nan"), float("inf"), 1.0]),
    pa.array([0.5, 1, 2], pa.float16()),
    pa.array([decimal.Decimal("1.5"), None, decimal.Decimal("-2")]),
    pa.array(["q0", "q1", "q2"]),
    pa.array(["q0", None, "q2"], pa.large_string()),
    pa.array(["A", "A", "B"]).dictionary_encode(),
    pa.StringArray.from_buffers(
        3, pa.py_buffer(np.arange(4, dtype=np.int32)), pa.py_buffer(b"\xff\xfea")
    ),
    pa.array([b"\xff", b"q1", None]),
    pa.array([datetime.date(2020, 1, 1), None, datetime.date(1, 1, 1)]),
    pa.array([0, 2**30, -(2**30)], pa.date32()),
    pa.array([0, 2**62, None], pa.timestamp("us")),
    pa.array([0, 1, None], pa.timestamp("ns", "Mars/Base")),
    pa.array([0, 1, 2**62], pa.duration("s")),
    pa.array([datetime.time(1), None, None]),
    pa.array([["a", "b"], ["c", "d"], []]),
    pa.array([["a", "b"], ["c", None], ["d", "e"]], pa.list_(pa.string(), 2)),
    pa.array([[[1]], None, [[]]]),
    pa.array([{"A": "x", "B": "y"}, {"A": None, "B": "z"}, None]),
    pa.array([[("A", "x"), ("B", "y")], [], None], pa.map_(pa.string(), pa.string())),
]


GOOD = {
    "id": pa.array(["q0", "q1", "q2"]),
    "question": pa.array(["Q0?", "Q1?", "Q2?"]),
    "options": pa.array([["one", "two"]] * 3),
    "answer": pa.array(["A", "B", "A"]),
    "difficulty": pa.array([0.1, 0.2, None]),
    "category": pa.array(["x", "y", None]),
}


@st.composite
def parquet_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Columns of any types, maybe two of one name, maybe cut."""
    columns = draw(st.lists(st.tuples(names, st.sampled_from(ARROW)), max_size=4))
    keys = [name.encode("utf-8", "replace").decode() for name, _ in columns]
    if draw(st.booleans()):
        columns = [(name, column) for name, column in GOOD.items() if name not in keys] + columns
        keys = [key for key in GOOD if key not in keys] + keys
    file = io.BytesIO()
    pq.write_table(pa.table([column for _, column in columns], names=keys), file)
    content = file.getvalue()
    size = draw(st.integers(0, len(content))) if not draw(st.integers(0, 9)) else len(content)
    return "t.parquet", content[:size]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file's name and content, maybe packed, cut, or not what its name says."""
    name, content = draw(
        st.one_of(json_files(), csv_files(), parquet_files(), st.just(("t.csv", b"")))
    )
    damage = draw(st.sampled_from(["none"] * 20 + ["bom", "gzip", "cut gzip", "byte", "name"]))
    if "gzip" in damage and "parquet" not in name:
        name, content = f"{name}.gz", gzip.compress(content, mtime=0)
        if damage == "cut gzip":
            content = content[: draw(st.integers(0, len(content)))]
    elif damage == "bom":
        content = b"\xef\xbb\xbf" + content
    elif damage == "byte" and "parquet" not in name:
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(min_size=1, max_size=1)) + content[at:]
    elif damage == "name":
        name = draw(st.sampled_from(["t.jsonl", "t.json", "t.csv", "t.parquet", "t.csv.gz", "t"]))
    return name, content


def written(folder: Path, file: tuple[str, bytes]) -> Path:
    path = folder / file[0]
    path.write_bytes(file[1])
    return path


# ---- Readers -------------------------------------------------------------------------------------


@fuzz
@given(file=files())
def test_any_table(folder: Path, file: tuple[str, bytes]) -> None:
    """What the whole reading finds, counting, reading columns and reordering find too."""
    path = written(folder, file)
    try:
        table = read_table(path).columns
    except InputError:
        for read in (count_rows, lambda p: read_columns(p, ["id"])):
            with suppress(InputError):
                read(path)
        return
    n = len(next(iter(table.values()), []))
    assert {len(column) for column in table.values()} <= {n}
    assert count_rows(path) == n or not table  # a row may be an empty object
    for name in table:
        with suppress(InputError):
            assert len(read_columns(path, [name])[name]) == n
    backwards = np.arange(n)[::-1]
    for out in ("o.jsonl", "o.json", "o.csv", "o.parquet"):
        with suppress(InputError):
            write_ordered(path, folder / out, backwards)
            if out == f"o{path.suffix}":
                # By name, since the first row may name its columns in another order.
                again = read_table(folder / out).columns
                assert again.keys() == table.keys()
                assert all(repr(again[name]) == repr(table[name][::-1]) for name in table)


@fuzz
@given(
    file=files(),
    bad_rows=st.sampled_from(["error", "drop"]),
    base=st.sampled_from([None] * 4 + [0, 1]),
)
def test_any_questions(
    folder: Path, file: tuple[str, bytes], bad_rows: str, base: int | None
) -> None:
    try:
        found = read_questions(written(folder, file), bad_rows=bad_rows, answer_base=base)
    except InputError:
        return
    assert len(found.questions) + sum(found.dropped.values()) == found.rows
    assert bad_rows == "drop" or set(found.dropped) <= {"unlabelled"}
    assert len(set(found.questions["id"])) == len(found.questions) > 0
    for row in found.questions:
        assert row["id"]
        assert row["question"].strip()
        assert 2 <= len(set(row["options"])) == len(row["options"]) <= 26
        assert all(option.strip() for option in row["options"])
        assert 0 <= row["answer"] < len(row["options"])
        assert row["difficulty"] is None or np.isfinite(row["difficulty"])


@pytest.fixture(scope="module")
def questions() -> Dataset:
    rows = [
        {"id": f"q{i}", "question": f"Q{i}?", "options": ["w", "x", "y"], "answer": "ABCA"[i]}
        for i in range(4)
    ]
    return read_questions(Dataset.from_list(rows)).questions


@fuzz
@given(file=files(), method=st.sampled_from(["share", "1pl", "2pl"]))
def test_any_labels(folder: Path, questions: Dataset, file: tuple[str, bytes], method: Any) -> None:
    path, ids = written(folder, file), questions["id"][:]
    with suppress(InputError):
        difficulty, _, _ = read_labels(ids, path, "difficulty")
        assert isinstance(difficulty, np.ndarray)
        assert difficulty.shape == (4,)
        assert not np.isinf(difficulty).any()
        assert np.isfinite(difficulty).any()
    with suppress(InputError):
        category, _, _ = read_labels(ids, path, "category")
        assert len(category) == 4
        assert {type(name) for name in category} <= {str, type(None)}
        assert any(category)
    with suppress(InputError):
        wrong, _ = read_answers(questions, path, method=method)
        assert ((wrong >= 0) & (wrong <= 1) | np.isnan(wrong)).all()


@settings(fuzz, max_examples=fuzz.max_examples // 3)
@given(file=files())
def test_any_results(folder: Path, file: tuple[str, bytes]) -> None:
    with suppress(InputError):
        found = compare(written(folder, file), baseline="A")
        for outcome in found.record.outcomes:
            assert "A" in outcome.arms
            assert len(outcome.arms) > 1
            assert len(outcome.ids) > 1


# ---- Templates, settings, study files ------------------------------------------------------------


pieces = st.lists(
    st.sampled_from(["{options}", "{letters}", "{", "}", "{{", "{foo}", "{0}", "\n"]) | texts,
    max_size=3,
).map("".join)


@fuzz
@given(
    before=pieces,
    question=st.sampled_from(["{question}"] * 4 + ["", "{question}{question}", "{ question }"]),
    after=pieces,
    form=st.sampled_from(["cloze", "letter"]),
)
def test_any_template(
    questions: Dataset, before: str, question: str, after: str, form: Any
) -> None:
    template = before + question + after
    try:
        found = question_texts(questions, form, template=template)
    except InputError:
        return
    listed = "A) w\nB) x\nC) y"
    for i, text in enumerate(found):
        if template:
            parts = template.replace("{letters}", "A, B, C").replace("{options}", listed)
            assert text.prompt == parts.replace("{question}", f"Q{i}?")
        assert text.continuations == (["w", "x", "y"] if form == "cloze" else ["A", "B", "C"])


TOKENS = """
1 0 -1 2 1.5 1e-3 1e999 .nan .inf 0x1F 0o9 1_0 1:90 2001-01-09 2001-99-99 yes true null ~
paper cloze letter all final random blocked curriculum icd10cm length llm human given {question}
*a &a !!int !!set !!binary !x ? - : % @ ` | > " ' # <<
"""
KEYS = """
data split folds columns model preset strategy blocks bands difficulty category table answers
measure cluster form score template at <<
"""
tokens = st.one_of(
    st.sampled_from(TOKENS.split()),
    st.sampled_from(["", '"\\ud83d"', "!!int x", "!!timestamp x", "&a 1", "9" * 30, "9" * 5000]),
    st.text(max_size=5),
)


def keys_of(*specs: Any) -> list[str]:
    return [name for spec in specs for name in spec.model_fields]


keys = st.one_of(st.sampled_from([*keys_of(Study, Recipe, Adapter), *KEYS.split()]), tokens)
yaml = st.recursive(
    tokens,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda entries: f"[{', '.join(entries)}]"),
        st.lists(st.tuples(keys, inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=8,
)


LINES = """
name: of all kinds
models: [smollm2-135m, {model: gemma3-270m, recipe: {learning_rate: 1e-4, adapter: {layers: 4}}}]
seeds: 2
strategies: [random, {strategy: curriculum, bands: [0.2, 0.7], hardest_first: true}]
labels: {difficulty: {given: {column: d}, llm: {models: [a, b@http://c/v1]}}, category: cluster}
recipe: {epochs: 2, loss: choice, schedule: wsd}
scoring: {template: "{question}", score: sum}
checkpoints: {at: [], questions: 5}
order_seed: 9223372036854775807
"""


@settings(fuzz, max_examples=fuzz.max_examples * 4 // 3)
@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
@given(
    good=st.sets(st.sampled_from(LINES.strip().splitlines()), max_size=3),
    odd=st.lists(st.builds("{}: {}".format, keys, yaml), max_size=1),
    needed=st.sampled_from(["training: icd10cm\nevaluation: medqa\n"] * 9 + [""]),
    overrides=st.lists(st.builds("{}={}".format, keys, yaml), max_size=1),
)
def test_any_study_file(
    folder: Path, good: set[str], odd: list[str], needed: str, overrides: list[str]
) -> None:
    text = needed + "\n".join([*sorted(good), *odd])
    path = written(folder, ("study.yaml", text.encode("utf-8", "surrogatepass")))
    try:
        study = load_study(path, overrides)
    except InputError:
        return
    again = written(folder, ("again.yaml", dump_study(study).encode()))
    assert load_study(again) == study


@fuzz
@given(st.lists(st.builds("{}={}".format, keys | st.just("adapter.rank"), tokens), max_size=3))
def test_any_settings(given_settings: list[str]) -> None:
    with suppress(InputError):
        recipe = read_recipe(given_settings)
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


# ---- Orders --------------------------------------------------------------------------------------

counts = st.one_of(
    st.integers(-1, 4), st.sampled_from([2**40, 2**62, 2**63, 10**30, 1.5, True, "3"])
)
labels = st.lists(st.one_of(st.sampled_from("xy"), numbers, texts, st.none()), max_size=5)


@settings(fuzz, max_examples=2 * fuzz.max_examples)
@given(
    strategy=st.sampled_from([*STRATEGIES, "interleave"]),
    category=st.one_of(st.none(), st.lists(st.sampled_from("xy"), max_size=5), labels),
    difficulty=st.one_of(st.none(), st.lists(st.floats(0, 1), max_size=5), labels),
    options=st.fixed_dictionaries(
        {},
        optional={
            "n": counts,
            "seed": counts,
            "blocks": counts | st.just("band"),
            "bands": counts | st.lists(numbers, max_size=3),
            "category_order": st.sampled_from(["drawn", "size", "difficulty", "x", "xy"]),
            "epochs": counts,
            "repeat": counts,
            "each": st.sampled_from(["same", "anew", ""]),
        },
    ),
)
def test_any_order(strategy: str, category: Any, difficulty: Any, options: dict[str, Any]) -> None:
    try:
        shown = order(strategy, category=category, difficulty=difficulty, **options)
    except InputError:
        return
    times = options.get("epochs", 1) * options.get("repeat", 1)
    n = next(
        len(x) if isinstance(x, list) else x
        for x in (category, difficulty, options.get("n"))
        if x is not None
    )
    np.testing.assert_array_equal(np.sort(shown), np.repeat(np.arange(n), times))
