"""The command line, as its user meets it: statuses, what is said, and files that come out."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

import lessonplan
from lessonplan.data.tables import read_table, write_table
from tests.cli.conftest import Said, run
from tests.questions import question_rows, write_rows

# ---- Studies -------------------------------------------------------------------------------------


def test_study_status_and_report(study: tuple[Path, Said]) -> None:
    out, said = study
    assert said.status == 0
    assert said.out.splitlines()[-1] == f"report: {out / 'report' / 'index.html'}"
    assert "\x1b" not in said.err
    assert said.err.splitlines()[0] == "10 runs, 0 of them done"
    status = run("status", out)
    assert status.status == 0
    assert "small: 9 of 9 runs done" in status.out
    assert status.out.count("3 of 3") == 3
    (out / "report" / "index.html").unlink()
    again = run("report", out)
    assert again == Said(0, said.out, "")
    assert (out / "report" / "index.html").is_file()


def test_plan_of_a_study_that_was_run(study: tuple[Path, Said]) -> None:
    """What a question took is what all took, a set that is scored on the way counted there too."""
    from lessonplan.study.cost import run_cost

    out, _ = study
    logs = [json.loads(f.read_text()) for f in out.glob("tunings/*/tuning.json")]
    logs = [log for log in logs if log["arm"] != "untuned"]
    cost = run_cost(out)
    assert cost is not None
    scoring = sum(log["scoring_seconds"] for log in logs)
    assert [log["questions"] for log in logs] == [48] * 9
    assert cost.tuning * 9 * 48 == pytest.approx(sum(log["seconds"] for log in logs) - scoring)
    rows = {log["id"]: 0 for log in logs}
    for file in out.glob("tunings/*/evaluations/*.parquet"):
        if file.parents[1].name in rows:
            rows[file.parents[1].name] += pq.read_metadata(file).num_rows
    assert rows == {log["id"]: log["scored"] for log in logs}
    assert cost.scoring * 9 * (24 + 8) == pytest.approx(scoring)
    said = run("plan", out, "--questions", 48)
    assert said.status == 0, said
    assert "A seed takes 3 runs, a run" in said.out


def test_failed_runs_end_in_status_1(folder: Path, tmp_path: Path) -> None:
    wild = ["--set", "recipe.learning_rate=1e30", "--set", "seeds=1", "--set", "strategies=random"]
    said = run("study", folder / "study.yaml", "-o", tmp_path / "s", *wild)
    assert said.status == 1
    assert "1 run failed; starting the study again tries what failed again." in said.out
    assert "failed: tiny, random, seed 0" in said.err
    assert run("report", tmp_path / "s").status == 0
    assert "1 run failed; the report lists the reasons." in run("status", tmp_path / "s").out


def test_interrupted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lessonplan.study.run_study", stop)
    said = run("study", folder / "study.yaml", "-o", tmp_path / "s")
    assert said.status == 130
    assert "stopped; what was finished is kept" in said.err


def test_compare_finds_what_the_study_found(study: tuple[Path, Said], tmp_path: Path) -> None:
    from lessonplan.statistics import analyse, compare
    from lessonplan.study import read_record

    out, _ = study
    plan = json.loads((out / "plan.json").read_text())
    tables = []
    for made in plan["runs"]:
        for e in made["evaluations"]:
            if e["of"] == "test" and e["kind"] == "final" and made["arm"] != "untuned":
                table = pq.read_table(
                    out / "tunings" / made["id"] / "evaluations" / f"{e['id']}.parquet"
                ).select(["id", "correct"])
                n = len(table)
                table = table.append_column("arm", pa.array([made["arm"]] * n))
                tables.append(table.append_column("seed", pa.array([made["seed"]] * n)))
    pa.csv.write_csv(pa.concat_tables(tables), tmp_path / "results.csv")
    (theirs,) = compare(tmp_path / "results.csv").analysis.results
    (ours,) = analyse(read_record(out)).results
    assert {g.arm for g in ours.gains} == {"blocked", "curriculum"}
    found = {g.arm: g.estimate for g in theirs.gains}
    for gain in ours.gains:
        assert found[gain.arm] == gain.estimate
    command = ("compare", tmp_path / "results.csv")
    said = run(*command, "-o", tmp_path / "report")
    assert said.status == 0
    assert "curriculum" in said.out
    assert (tmp_path / "report" / "index.html").is_file()
    theirs = pa.concat_tables(tables).rename_columns({"id": "question_id", "arm": "method"})
    pa.csv.write_csv(theirs, tmp_path / "theirs.csv")
    named = ("--column", "id=question_id", "--column", "arm=method")
    assert run("compare", tmp_path / "theirs.csv", *named).out == run(*command).out


# ---- Single steps --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(folder: Path, tiny_llama: Path) -> tuple[Path, Said]:
    settings = ("threads=1", "learning_rate=5e-3", "adapter.rank=4", "adapter.layers=2")
    said = run(
        *("train", folder / "train.jsonl", "-m", tiny_llama, "-s", "curriculum", "--seed", 1),
        *("-o", folder / "adapter"),
        *(word for setting in settings for word in ("--set", setting)),
    )
    return folder / "adapter", said


def test_train_and_evaluate_equal_the_study(
    study: tuple[Path, Said],
    adapter: tuple[Path, Said],
    folder: Path,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    from safetensors.numpy import load_file

    saved, said = adapter
    assert said.status == 0
    assert said.out.endswith(f"adapter: {saved}\n")
    out, _ = study
    plan = json.loads((out / "plan.json").read_text())
    (same,) = [r for r in plan["runs"] if (r["arm"], r["seed"]) == ("curriculum", 1)]
    final = next(e["id"] for e in same["evaluations"] if e["kind"] == "final")
    tuning = out / "tunings" / same["id"]
    ours = load_file(saved / "adapter_model.safetensors")
    theirs = load_file(tuning / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        np.testing.assert_allclose(weights, theirs[name], atol=1e-5)

    said = run(
        *("evaluate", folder / "test.jsonl", "-m", tiny_llama, "--adapter", saved),
        *("-o", tmp_path / "p.parquet", "--set", "threads=1"),
    )
    assert said.status == 0
    mine = pq.read_table(tmp_path / "p.parquet")
    expected = pq.read_table(tuning / "evaluations" / f"{final}.parquet")
    for name in ("id", "answer", "chosen", "correct", "tokens", "bytes"):
        assert mine[name].to_pylist() == expected[name].to_pylist()
    for name in ("loglikelihood", "unconditional"):
        np.testing.assert_allclose(
            np.concatenate(mine[name].to_pylist()),
            np.concatenate(expected[name].to_pylist()),
            atol=1e-4,
        )
    accuracy = np.mean(mine["correct"].to_numpy())
    assert said.out.startswith(f"24 questions: accuracy {accuracy:.3f}, weighted F1 ")


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_predictions_in_other_formats(
    folder: Path, tiny_llama: Path, tmp_path: Path, name: str
) -> None:
    said = run(
        *("evaluate", folder / "test.jsonl", "-m", tiny_llama, "-o", tmp_path / name),
        *("--form", "letter", "--set", "threads=1"),
    )
    assert said.status == 0
    lines = (tmp_path / name).read_text().splitlines()
    assert len(lines) == 24 + name.endswith("csv")


def test_overwrite(folder: Path, tmp_path: Path) -> None:
    ordered = tmp_path / "ordered.jsonl"
    ordered.touch()  # nothing is lost with an empty file
    command = ("order", folder / "train.jsonl", "-o", ordered)
    assert run(*command, "-s", "random").status == 0
    before = ordered.read_bytes()
    assert run(*command, "-s", "original").status == 2
    assert ordered.read_bytes() == before
    assert run(*command, "-s", "original", "--overwrite").status == 0
    assert ordered.read_bytes() != before


@pytest.mark.parametrize("read", ["DATA", "--adapter", "-m"])
def test_nothing_is_written_into_what_is_read(folder: Path, tmp_path: Path, read: str) -> None:
    """Be it the data, the adapter or the model: a folder's files are read, too."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "config.json").write_text("precious")
    data, *options = [inside] if read == "DATA" else [folder / "train.jsonl", read, inside]
    for way in (inside, tmp_path / "inside" / ".." / "inside"):
        said = run("evaluate", data, *options, "-o", way / "config.json", "--overwrite")
        assert said.status == 2
        assert "which is read by this command" in said.err
    assert (inside / "config.json").read_text() == "precious"


def test_a_report_is_overwritten_and_other_files_are_not(folder: Path, tmp_path: Path) -> None:
    command = ("compare", folder / "results.csv", "-o", tmp_path, "--baseline")
    assert run(*command, "x").status == 0
    page = (tmp_path / "index.html").read_bytes()
    (tmp_path / "notes.txt").write_text("mine")
    assert run(*command, "y").status == 2
    assert (tmp_path / "index.html").read_bytes() == page
    assert run(*command, "y", "--overwrite").status == 0
    assert (tmp_path / "index.html").read_bytes() != page
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_training_in_an_order_of_label_tables(
    adapter: tuple[Path, Said], folder: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """The same labels, whether they stand in the data or in a table, in any order of its rows."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    labels = [{"id": row["id"], "difficulty": row.pop("difficulty")} for row in rows]
    for name, lines in (("bare.jsonl", rows), ("hard.jsonl", labels[::-1])):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = ("threads=1", "learning_rate=5e-3", "adapter.rank=4", "adapter.layers=2")
    train = (
        *("train", tmp_path / "bare.jsonl", "-m", tiny_llama, "-s", "curriculum", "--seed", 1),
        *("-o", tmp_path / "adapter"),
        *(word for setting in settings for word in ("--set", setting)),
    )
    said = run(*train)
    assert said.status == 2
    assert "difficulty" in said.err
    said = run(*train, "--labels", tmp_path / "hard.jsonl")
    assert said.status == 0, said.err
    weights = "adapter_model.safetensors"
    assert (tmp_path / "adapter" / weights).read_bytes() == (adapter[0] / weights).read_bytes()

    (tmp_path / "none.jsonl").write_text('{"id": "0", "note": "no label"}\n')
    train = [tmp_path / "other" if word == tmp_path / "adapter" else word for word in train]
    said = run(*train, "--labels", tmp_path / "none.jsonl")
    assert said.status == 2
    assert "none.jsonl has no column 'difficulty'" in said.err


def test_training_that_fails(folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    said = run(
        *("train", folder / "train.jsonl", "-m", tiny_llama, "-s", "random"),
        *("-o", tmp_path / "a", "--set", "learning_rate=1e30", "--set", "threads=1"),
    )
    assert said.status == 1
    assert said.err.startswith("error: The loss became nan at step 2 of 6")
    assert "Traceback" not in said.err
    assert not (tmp_path / "a").exists()


@pytest.fixture(params=["t.jsonl", "t.csv", "t.parquet"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A table that is no question set, with text that must not be retyped."""
    path = tmp_path / request.param
    code = [f"{i:03d}" for i in range(12)]
    columns = {
        "code": code,
        "text": [f'say "{c}", {i}' for i, c in enumerate(code)],
        "kind": [1 + i % 3 for i in range(12)],
        "hard": [(i * 7 % 12) / 12 for i in range(12)],
    }
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns | {"list": [[i] for i in range(12)]}), path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(pa.table(columns), path)
    else:
        write_rows(path, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values())])  # noqa: B905
    return path


ORDERS: dict[str, dict[str, Any]] = {
    "-s random": {},
    "-s blocked --column category=kind --category-order 3,1,2": {"category_order": [3, 1, 2]},
    "-s interleaved_curriculum --column category=kind --column difficulty=hard --blocks band "
    "--bands 0.3,0.6 --hardest-first": {
        "blocks": "band",
        "bands": [0.3, 0.6],
        "hardest_first": True,
    },
    "-s curriculum --column difficulty=hard --bands 3 --repeat 2 --epochs 2 --each anew": {
        "bands": 3,
        "repeat": 2,
        "epochs": 2,
        "each": "anew",
    },
}


@pytest.mark.parametrize(("options", "settings"), ORDERS.items(), ids=ORDERS)
def test_order_keeps_all_columns_and_bytes(
    table: Path, options: str, settings: dict[str, Any]
) -> None:
    labels: dict[str, Any] = {}
    if "category=" in options:
        labels["category"] = [1 + i % 3 for i in range(12)]
    if "difficulty=" in options:
        labels["difficulty"] = [(i * 7 % 12) / 12 for i in range(12)]
    strategy = options.split()[1]
    order = lessonplan.order(strategy, 12, seed=3, **labels, **settings)
    out = table.with_name(f"out{table.suffix}")
    said = run("order", table, *options.split(), "--seed", 3, "-o", out)
    assert said == Said(0, f"{len(order)} rows in {strategy} order: {out}\n", "")
    if table.suffix == ".parquet":
        assert pq.read_table(out).equals(pq.read_table(table).take(order))
        return
    lines = table.read_bytes().splitlines(keepends=True)
    header = [lines.pop(0)] if table.suffix == ".csv" else []
    assert out.read_bytes() == b"".join(header + [lines[i] for i in order])


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_categories_of_a_file_are_texts(tmp_path: Path, ending: str) -> None:
    """Sections 1.1 and 1.10 are two, and 10 stands before 2 by name, as in `train`."""
    kinds = ["1.1", "1.10", "2", "10", "1.10 ", "2", "1.1", "10"]
    file, out = tmp_path / f"t.{ending}", tmp_path / f"o.{ending}"
    write_table(Dataset.from_dict({"n": [str(i) for i in range(8)], "category": kinds}), file)
    assert run("order", file, "-s", "blocked", "--seed", 1, "-o", out).status == 0
    expected = lessonplan.order("blocked", category=[kind.strip() for kind in kinds], seed=1)
    assert [int(n) for n in read_table(out).columns["n"]] == expected.tolist()
    # Whole numbers are named as they are written.
    write_table(Dataset.from_dict({"n": list(range(6)), "category": [2, 10, 1, 2, 10, 1]}), file)
    assert run("order", file, "-s", "blocked", "-o", out, "--overwrite").status == 0
    expected = lessonplan.order("blocked", category=["2", "10", "1", "2", "10", "1"])
    assert [int(n) for n in read_table(out).columns["n"]] == expected.tolist()


def test_order_of_the_bank(tmp_path: Path) -> None:
    bank = lessonplan.load_questions("icd10cm", split="test")
    out = tmp_path / "o.jsonl"
    said = run("order", "icd10cm", "--split", "test", "-s", "interleaved_curriculum", "-o", out)
    assert said.status == 0
    expected = lessonplan.order(
        "interleaved_curriculum", category=bank["category"][:], difficulty=bank["difficulty"][:]
    )
    shown = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in shown] == [bank["id"][int(i)] for i in expected]
    assert list(shown[0]) == bank.column_names
    # A setting needs the difficulty where the strategy does not.
    said = run(
        *("order", "icd10cm", "--split", "test", "-s", "blocked"),
        *("--category-order", "difficulty", "-o", out, "--overwrite"),
    )
    assert said.status == 0


def test_order_of_a_folder_as_on_the_hub(tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    bank.mkdir()
    for split, rows in (("train", question_rows(12)), ("test", question_rows(6, first=12))):
        write_rows(bank / f"{split}.jsonl", rows)
    out, plain = tmp_path / "o.jsonl", tmp_path / "plain.jsonl"
    command = ("order", bank, "-s", "curriculum", "-o", out)
    said = run(*command)
    assert said.status == 2
    assert "several splits. Say which one with split: train, test" in said.err
    assert run(*command, "--split", "test").status == 0
    assert run("order", bank / "test.jsonl", "-s", "curriculum", "-o", plain).status == 0
    shown, alike = (
        [json.loads(line)["id"] for line in file.read_text().splitlines()] for file in (out, plain)
    )
    assert shown == alike
    assert len(shown) == 6


# ---- Labels --------------------------------------------------------------------------------------


def test_label_then_order(folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """What `label` writes, `order` takes: by id, whatever the order of the rows."""
    out = tmp_path / "labels.parquet"
    said = run("label", "difficulty", folder / "train.jsonl", "-m", tiny_llama, "-o", out,
               "--set", "threads=1")  # fmt: skip
    assert said.status == 0, said
    assert "chooses the right option of" in said.out
    assert "“this label” and “of the data”" in said.out
    assert "bits of the right answer's position" in said.out
    table = pq.read_table(out)
    assert table["id"].to_pylist() == [f"q{i}" for i in range(48)]
    difficulty = dict(zip(table["id"].to_pylist(), table["difficulty"].to_pylist(), strict=True))
    turned = write_rows(tmp_path / "turned.jsonl", question_rows(48)[::-1])
    ordered = tmp_path / "ordered.jsonl"
    said = run("order", turned, "-s", "curriculum", "--labels", out, "-o", ordered)
    assert said.status == 0, said
    shown = [json.loads(line)["id"] for line in ordered.read_text().splitlines()]
    assert shown == sorted(shown, key=lambda i: difficulty[i])


def test_labels_of_rows_without_ids(tmp_path: Path) -> None:
    bare = [{k: v for k, v in row.items() if k != "id"} for row in question_rows(12)]
    data, out = write_rows(tmp_path / "bare.jsonl", bare), tmp_path / "length.csv"
    assert run("label", "difficulty", data, "--measure", "length", "-o", out).status == 0
    ordered = tmp_path / "ordered.jsonl"
    said = run("order", data, "-s", "curriculum", "--labels", out, "-o", ordered)
    assert said.status == 0, said
    shown = [json.loads(line) for line in ordered.read_text().splitlines()]
    sizes = [len(r["question"]) + sum(map(len, r["options"])) for r in shown]
    assert sizes == sorted(sizes)


def test_a_label_at_chance_says_so_and_a_study_refuses_it(
    folder: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels.csv"
    said = run("label", "difficulty", folder / "train.jsonl", "-m", tiny_llama, "-o", out,
               "--set", "threads=1")  # fmt: skip
    assert "no better than guessing" in said.out
    assert "a study refuses them" in said.out
    said = run("study", folder / "study.yaml", "-o", tmp_path / "new",
               "--set", f"labels.difficulty.mine.table={out}")  # fmt: skip
    assert said.status == 2
    assert "no better than guessing" in said.err
    assert "allow_uninformative" in said.err


def test_a_label_table_and_a_column_together(folder: Path, tmp_path: Path) -> None:
    """The category is the data's own, the difficulty comes from the table."""
    table, ordered = tmp_path / "length.csv", tmp_path / "ordered.jsonl"
    run("label", "difficulty", folder / "train.jsonl", "--measure", "length", "-o", table)
    said = run("order", folder / "train.jsonl", "-s", "blocked_curriculum", "--labels", table,
               "-o", ordered)  # fmt: skip
    assert said.status == 0, said
    shown = [json.loads(line) for line in ordered.read_text().splitlines()]
    kinds = [row["category"] for row in shown]
    assert sum(a != b for a, b in itertools.pairwise(kinds)) == 3
    for kind in set(kinds):
        sizes = [
            len(r["question"]) + sum(map(len, r["options"])) for r in shown if r["category"] == kind
        ]
        assert sizes == sorted(sizes)


def test_ids_under_another_name_are_asked_for(tmp_path: Path) -> None:
    """Numbers that are ids could pass for row numbers."""
    named = [
        {k: v for k, v in row.items() if k != "id"} | {"number": 11 - i}
        for i, row in enumerate(question_rows(12))
    ]
    data, table = write_rows(tmp_path / "named.jsonl", named), tmp_path / "length.csv"
    said = run("label", "difficulty", data, "--measure", "length", "--column", "id=number",
               "-o", table)  # fmt: skip
    assert said.status == 0, said
    ordered = tmp_path / "ordered.jsonl"
    said = run("order", data, "-s", "curriculum", "--labels", table, "-o", ordered)
    assert said.status == 2
    assert "--column id=number" in said.err
    said = run("order", data, "-s", "curriculum", "--labels", table, "--column", "id=number",
               "-o", ordered)  # fmt: skip
    assert said.status == 0, said
    shown = [json.loads(line) for line in ordered.read_text().splitlines()]
    sizes = [len(r["question"]) + sum(map(len, r["options"])) for r in shown]
    assert sizes == sorted(sizes)


# ---- Lists and help ------------------------------------------------------------------------------


def test_lists() -> None:
    for command, names in (
        ("strategies", list(lessonplan.STRATEGIES)),
        ("models", ["smollm2-135m", "gemma3-270m", "tinyllama-1.1b", "llama2-7b", "llama2-13b"]),
        ("datasets", ["icd10cm", "hpo", "medmcqa", "medqa", "lek"]),
    ):
        said = run(command)
        assert said.status == 0
        listed = [line.split()[0] for line in said.out.splitlines()]
        assert set(names) <= set(listed)


def test_help_of_every_command() -> None:
    said = run("--help")
    assert said.status == 0
    commands = ["study", "plan", "status", "report", "compare", "grid", "order", "label", "train"]
    commands += ["evaluate", "strategies", "models", "datasets"]
    listed = said.out[said.out.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in listed if line[2:3].strip()] == commands
    for command in commands:
        help_text = run(command, "--help")
        assert help_text.status == 0
        assert help_text.out


def test_a_bank_that_is_taken_as_a_whole_is_said_to_be(tmp_path: Path) -> None:
    out = tmp_path / "ordered.jsonl"
    whole = run("order", "icd10cm", "-s", "blocked", "-o", out)
    assert "taken as a whole; --split train or --split test" in whole.err
    part = run("order", "icd10cm", "--split", "train", "-s", "blocked", "-o", out, "--overwrite")
    assert (part.status, part.err) == (0, "")


def test_help_imports_nothing_slow() -> None:
    program = """
import sys
import lessonplan
from lessonplan.cli import main
sys.argv = ["lessonplan", "--help"]
try:
    main()
finally:
    slow = {"torch", "transformers", "datasets", "pandas", "scipy", "matplotlib", "pyarrow"}
    print("SLOW", sorted(slow & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "SLOW []"
