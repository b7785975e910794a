"""Running a study: what is done, done again, and left alone."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from lessonplan.errors import InputError
from lessonplan.study import Study, read_record, run_study
from lessonplan.study.plan import Plan
from lessonplan.study.status import status_table
from lessonplan.study.work import ModelWork
from tests.study.ears import Ears, leftovers

Make = Callable[..., Study]
Contents = Callable[[Path], dict[str, str]]
Finished = tuple[Path, Plan]


def times(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_mtime_ns
        for file in (folder / "tunings").rglob("*")
        if file.is_file()
    }


def tuning_times(folder: Path) -> dict[str, int]:
    return {name: at for name, at in times(folder).items() if name.endswith("tuning.json")}


def test_what_lies_in_a_finished_folder(finished: Finished) -> None:
    folder, plan = finished
    names = {p.name for p in folder.iterdir()} - {".lock"}
    assert names == {"study.yaml", "plan.json", "data", "tunings"}
    assert {p.name for p in (folder / "tunings").iterdir()} == {run.id for run in plan.runs}
    for run in plan.runs:
        here = folder / "tunings" / run.id
        tuned = {"adapter", "order.parquet"} if run.order is not None else set()
        assert {p.name for p in here.iterdir()} == {
            "tuning.json",
            "SHA256SUMS",
            "evaluations",
        } | tuned
        assert {p.stem for p in (here / "evaluations").iterdir()} == {e.id for e in run.evaluations}
        if run.order is not None:
            ids = plan.training[0].questions["id"][:]
            shown = pq.read_table(here / "order.parquet")["id"].to_pylist()
            assert shown == [ids[i] for i in run.order]
            written = json.loads((here / "tuning.json").read_text())
            assert len(written["losses"]) == 6
            assert written["shortcuts"]["kept_layers"] == 2
    assert not leftovers(folder)


def test_a_second_start_does_nothing(make: Make, copied: Path) -> None:
    before = times(copied)
    ears = Ears()
    run_study(make(), copied, ears)
    assert times(copied) == before
    assert ears.began == (7, 7)
    assert ears.work == 0
    assert ears.done == 0
    assert not any("loading" in text for text in ears.said)


def test_a_deleted_tuning_alone_is_redone(make: Make, copied: Path, contents: Contents) -> None:
    whole, before = contents(copied), times(copied)
    gone = json.loads((copied / "plan.json").read_text())["runs"][3]["id"]
    shutil.rmtree(copied / "tunings" / gone)
    ears = Ears()
    run_study(make(), copied, ears)
    assert ears.began == (7, 6)
    assert ears.done == 1
    assert ears.trained == 48
    assert abs(ears.work) < 1e-9
    assert contents(copied) == whole
    after = times(copied)
    assert {name for name in after if after[name] != before[name]} == {
        name for name in after if name.startswith(f"tunings/{gone}/")
    }


def test_a_run_without_its_record_is_redone(make: Make, copied: Path, contents: Contents) -> None:
    whole = contents(copied)
    gone = json.loads((copied / "plan.json").read_text())["runs"][2]["id"]
    (copied / "tunings" / gone / "tuning.json").unlink()
    (copied / "tunings" / gone / "evaluations" / "stale.parquet").write_text("")
    run_study(make(), copied)
    assert contents(copied) == whole


def test_a_deleted_evaluation_is_scored_from_the_adapter(
    make: Make, copied: Path, contents: Contents
) -> None:
    whole, before = contents(copied), tuning_times(copied)
    for run in json.loads((copied / "plan.json").read_text())["runs"]:
        for evaluation in run["evaluations"]:
            if evaluation["kind"] == "final":
                folder = copied / "tunings" / run["id"] / "evaluations"
                (folder / f"{evaluation['id']}.parquet").unlink()
    run_study(make(), copied)
    assert contents(copied) == whole
    assert tuning_times(copied) == before


def finals(folder: Path) -> dict[tuple[str, int, str], list[Any]]:
    found = {}
    for run in json.loads((folder / "plan.json").read_text())["runs"]:
        for e in run["evaluations"]:
            if e["kind"] == "final":
                file = folder / "tunings" / run["id"] / "evaluations" / f"{e['id']}.parquet"
                found[run["arm"], run["seed"], e["of"]] = file.read_bytes()
    return found


def test_a_new_evaluation_set_tunes_nothing(
    make: Make, copied: Path, data: Path, with_more: Path
) -> None:
    before = tuning_times(copied)
    ears = Ears()
    study = make(evaluation=[str(data / "test.jsonl"), str(data / "more.jsonl")])
    run_study(study, copied, ears)
    assert tuning_times(copied) == before
    assert ears.trained == 0
    assert finals(copied) == finals(with_more)
    record = read_record(copied)
    assert [o.evaluation for o in record.outcomes] == ["test", "more"]
    assert record.failures == []
    assert str(status_table(copied)[0].title) == "tiny study: 6 of 6 runs done"
    # What could be had is had: nothing is tried again.
    run_study(study, copied, ears)
    assert ears.began == (7, 7)


def test_a_new_primary_score_tunes_nothing(
    make: Make, copied: Path, contents: Contents, tmp_path: Path
) -> None:
    before, old = tuning_times(copied), contents(copied)
    study = make(scoring={"score": "sum"}, seeds=1)
    run_study(study, copied)
    assert tuning_times(copied) == before
    assert old.items() <= contents(copied).items()
    run_study(study, tmp_path / "fresh")
    assert finals(copied) == finals(tmp_path / "fresh")


def test_adapters_are_kept_as_asked(
    make: Make, finished: Finished, contents: Contents, data: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"seeds": 1, "strategies": ["random"]}
    kept, none = tmp_path / "all", tmp_path / "none"
    run_study(make(keep_adapters="all", **changes), kept)
    (run,) = [run for run in (kept / "tunings").iterdir() if (run / "adapter").is_dir()]
    assert {p.name for p in run.iterdir() if p.is_dir()} == {
        "adapter",
        "adapter-24",
        "evaluations",
    }
    same = contents(finished[0])
    for name, digest in contents(kept).items():
        assert "adapter-24" in name or same[name] == digest
    # With all adapters, the curve of a new set can be had as well.
    more = [str(data / "test.jsonl"), str(data / "more.jsonl")]
    run_study(make(keep_adapters="all", evaluation=more, **changes), kept)
    assert [len(o.curves) for o in read_record(kept).outcomes] == [1, 1]

    run_study(make(keep_adapters="none", **changes), none)
    assert not list(none.rglob("adapter*"))
    assert finals(none).items() <= finals(finished[0]).items()
    ears = Ears()
    run_study(make(keep_adapters="none", evaluation=more, **changes), none, ears)
    assert len(ears.failures) == 1
    assert "keep_adapters: none" in ears.failures[0]
    record = read_record(none)
    assert record.runs_done == 0
    assert any("keep_adapters: none" in text for text in record.failures)


def test_two_arms_of_one_order_share_a_run(make: Make, tmp_path: Path) -> None:
    arms = ["random", {"strategy": "random", "name": "again"}]
    plan = run_study(make(strategies=arms, seeds=1), tmp_path / "s")
    assert len({run.id for run in plan.runs}) == 2
    (outcome,) = read_record(tmp_path / "s").outcomes
    assert (outcome.arms["random"] == outcome.arms["again"]).all()


def test_folds_predict_every_question(make: Make, data: Path, tmp_path: Path) -> None:
    training = [{"data": str(data / "train.jsonl"), "folds": 5}]
    recipe = {"threads": 1, "batch_size": 1, "adapter": {"rank": 2, "layers": 1}}
    study = make(
        training=training,
        evaluation=[],
        strategies=["random"],
        seeds=1,
        recipe=recipe,
        checkpoints={"at": [0.25, 0.5, 0.99], "questions": 10},
    )
    run_study(study, tmp_path / "s")
    record = read_record(tmp_path / "s")
    (outcome,) = record.outcomes
    assert (outcome.evaluation, outcome.folds) == ("train (held out)", 5)
    for values in [outcome.untuned, *outcome.arms.values()]:
        assert values is not None
        assert set(values.ravel().tolist()) == {0.0, 1.0}
    # Folds of 38 and 39 questions reach their half at 19 and 20: one point of the curve.
    curve = outcome.curves["random"]
    assert curve.seen.tolist() == [0, 10, 19, 39]
    assert curve.values.shape[2] == 10
    assert np.isfinite(curve.values).all()


# ---- Failures ------------------------------------------------------------------------------------

ONE_FAILS: dict[str, Any] = {"seeds": 1, "strategies": ["random", "blocked"]}


@pytest.mark.parametrize("batch", [8, 48], ids=["loss", "last step"])
def test_a_loss_that_is_no_number(
    make: Make, settings: dict[str, Any], tiny_llama: Path, tmp_path: Path, batch: int
) -> None:
    # With one step in all, the loss never shows that the weights are ruined.
    wild = {"learning_rate": 1e30, "batch_size": batch}
    models = [
        {"model": str(tiny_llama), "name": "wild", "recipe": wild},
        {"model": str(tiny_llama), "name": "tiny"},
    ]
    ears = Ears()
    plan = run_study(make(models=models, **ONE_FAILS), tmp_path / "s", ears)
    assert len(ears.failures) == 2
    assert all(text.startswith("wild, ") for text in ears.failures)
    assert all("learning_rate" in text for text in ears.failures)
    failed = {run.id for run in plan.runs if run.model == "wild" and run.order is not None}
    assert {p.stem for p in (tmp_path / "s" / "failures").iterdir()} == failed
    done = {p.name for p in (tmp_path / "s" / "tunings").iterdir()}
    assert done == {run.id for run in plan.runs} - failed
    assert not leftovers(tmp_path / "s")
    record = read_record(tmp_path / "s")
    assert sorted(record.failures) == sorted(ears.failures)
    assert (record.runs_done, record.runs_planned) == (2, 4)
    table, others = status_table(tmp_path / "s")
    assert str(table.title) == "tiny study: 2 of 4 runs done"
    assert [text.split(";")[0] for text in others] == ["2 runs failed"]


def test_a_failed_run_leaves_no_trace_in_the_next(
    make: Make,
    finished: Finished,
    contents: Contents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lessonplan.training import tune as tune_module

    calls = 0
    sound = tune_module.question_losses

    def out_of_memory(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            loss = sound(*args)
            loss.sum().backward()  # gradients that no step takes up
            raise RuntimeError("out of memory")
        return sound(*args)

    monkeypatch.setattr(tune_module, "question_losses", out_of_memory)
    ears = Ears()
    run_study(make(), tmp_path / "s", ears)
    assert ears.failures == ["tiny, random, seed 0: RuntimeError: out of memory"]
    assert len(list((tmp_path / "s" / "failures").iterdir())) == 1
    assert contents(tmp_path / "s").items() < contents(finished[0]).items()
    monkeypatch.undo()
    again = Ears()
    run_study(make(), tmp_path / "s", again)
    assert again.began == (7, 6)
    assert again.failures == []
    assert not list((tmp_path / "s" / "failures").iterdir())
    assert contents(tmp_path / "s") == contents(finished[0])


def test_hidden_states_are_shared_and_removed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    sound = ModelWork.do

    def watched(self: ModelWork, run: Any) -> None:
        sound(self, run)
        sizes.append(len([p for p in self.shared.iterdir() if not p.name.endswith(".lock")]))

    monkeypatch.setattr(ModelWork, "do", watched)
    run_study(make(seeds=1), tmp_path / "s")
    assert sizes[-1] == sizes[1] == 5  # to train; to score and without question, for two sets
    assert not leftovers(tmp_path / "s")


@pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"quantization": "nf4"}])
def test_hidden_states_are_of_one_way_to_compute(
    make: Make, tiny_llama: Path, tmp_path: Path, contents: Contents, other: dict[str, str]
) -> None:
    """One model, loaded in two ways, in one study: each as in a study of its own."""
    models = [
        {"model": str(tiny_llama), "name": "plain"},
        {"model": str(tiny_llama), "name": "other", "recipe": other},
    ]
    fewer: dict[str, Any] = {"seeds": 1, "strategies": ["random"]}
    ears = Ears()
    run_study(make(models=models, **fewer), tmp_path / "both", ears)
    assert ears.failures == []
    alone: dict[str, str] = {}
    for model in models:
        folder = tmp_path / str(model["name"])
        run_study(make(models=[model], **fewer), folder)
        alone |= contents(folder)
    assert contents(tmp_path / "both") == alone


def test_two_cuts_of_one_model(make: Make, tiny_llama: Path, tmp_path: Path) -> None:
    """Each has its own questions, so its own scores before fine-tuning."""
    models = [
        {"model": str(tiny_llama), "name": "short", "recipe": {"max_tokens": 40}},
        {"model": str(tiny_llama), "name": "long"},
    ]
    study = make(models=models, seeds=1, strategies=["random"])
    run_study(study, tmp_path / "s")
    record = read_record(tmp_path / "s")
    assert record.unfinished == []
    assert all(result.untuned is not None for result in record.outcomes)


# ---- Folders -------------------------------------------------------------------------------------


def test_another_study_in_the_folder(make: Make, copied: Path) -> None:
    before = times(copied)
    with pytest.raises(InputError, match=r"holds another study \('tiny study', not 'other'\)"):
        run_study(make(name="other"), copied)
    assert times(copied) == before
    assert "tiny study" in (copied / "study.yaml").read_text()
    (copied / "study.yaml").write_text("name: [\n")
    with pytest.raises(InputError, match=r"study\.yaml cannot be read"):
        run_study(make(), copied)


def test_a_folder_of_other_things(make: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(InputError, match="is not empty and holds no study"):
        run_study(make(), tmp_path)
    with pytest.raises(InputError, match="cannot be written to"):
        run_study(make(), tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "do not touch"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(make: Make, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        run_study(make(), tmp_path / "s")


def test_names_that_would_share_a_file(make: Make, data: Path, tmp_path: Path) -> None:
    sets = [
        {"data": str(data / "test.jsonl"), "name": "set 1"},
        {"data": str(data / "more.jsonl"), "name": "set-1"},
    ]
    with pytest.raises(InputError, match=r"same file \(set-1\.parquet\)"):
        run_study(make(evaluation=sets), tmp_path / "s")


def test_a_folder_in_use(make: Make, copied: Path) -> None:
    (copied / ".holder").write_text("process 4711 on elsewhere")
    with (
        FileLock(copied / ".lock"),
        pytest.raises(InputError, match=r"at work in .*: process 4711 on elsewhere"),
    ):
        threading_safe(lambda: run_study(make(), copied))


def threading_safe(call: Callable[[], object]) -> None:
    """Call in another thread: a lock may be taken again by the thread that has it."""
    caught: list[BaseException] = []

    def attempt() -> None:
        try:
            call()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    if caught:
        raise caught[0]
