"""Labels of a study: from where its file says, computed once, refused where they say nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lessonplan.data import load_questions
from lessonplan.errors import InputError
from lessonplan.evaluation.predict import evaluate
from lessonplan.labels.clusters import Clustering
from lessonplan.labels.label import Label, checked, label_table
from lessonplan.study import Study, labelling, model_labels, read_record, run_study
from lessonplan.study.config import ModelSpec
from lessonplan.study.labelling import make_label
from lessonplan.study.model_labels import Means
from lessonplan.study.plan import arms, make_plan
from lessonplan.study.sources import LabelSpec, read_label_spec
from lessonplan.study.store import Folder
from lessonplan.study.watch import Watch
from lessonplan.training.recipe import Recipe

Make = Callable[..., Study]
RECIPE = Recipe.model_validate({"threads": 1, "learning_rate": 5e-3, "adapter": {"rank": 4}})


@pytest.fixture
def questions(data: Path) -> Any:
    return load_questions(str(data / "train.jsonl"), keep=["llm"])


@pytest.fixture
def label(questions: Any, tmp_path: Path) -> Callable[..., Label]:
    """Return a function that makes a difficulty label of the 48 questions."""

    def make(**settings: Any) -> Label:
        spec = read_label_spec("difficulty", {"allow_uninformative": True} | settings)
        return make_label("difficulty", spec, questions, "set", Means(tmp_path, RECIPE))

    return make


def test_a_models_view_is_its_evaluation(
    label: Callable[..., Label], questions: Any, tiny_llama: Path
) -> None:
    found = label(models=str(tiny_llama))
    table = evaluate(questions, str(tiny_llama), recipe=RECIPE)
    expected = []
    for sums, tokens, answer in zip(
        *(table[name].to_pylist() for name in ("loglikelihood", "tokens", "answer")), strict=True
    ):
        scores = np.array(sums) / np.array(tokens)
        expected.append(1 - np.exp(scores[answer]) / np.exp(scores).sum())
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)
    assert "cloze" in found.origin


def test_several_models_are_averaged(
    label: Callable[..., Label], tiny_models: dict[str, Path]
) -> None:
    one, other = str(tiny_models["llama"]), str(tiny_models["qwen2"])
    both = label(models=[one, other])
    each = [label(models=name).values for name in (one, other)]
    np.testing.assert_array_equal(both.values, np.mean(each, axis=0))
    table = label_table(both, [str(i) for i in range(48)])
    assert {"probability: llama", "probability: qwen2"} <= set(table.column_names)


def test_a_view_is_computed_once(
    label: Callable[..., Label], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = label(models=str(tiny_llama), form="letter")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(model_labels, "load", never)
    again = label(models=str(tiny_llama), form="letter")
    np.testing.assert_array_equal(first.values, again.values)
    # Another measure needs no other view; another form does.
    entropy = label(models=str(tiny_llama), form="letter", measure="entropy")
    assert not np.array_equal(entropy.values, first.values)
    with pytest.raises(AssertionError, match="again"):
        label(models=str(tiny_llama), form="cloze")


def test_a_model_no_better_than_guessing_is_refused(
    questions: Any, tiny_llama: Path, tmp_path: Path
) -> None:
    spec = LabelSpec(models=[str(tiny_llama)], measure="probability")
    with pytest.raises(
        InputError, match=r"no better than guessing \(25\.0%\).*allow_uninformative"
    ):
        make_label("difficulty", spec, questions, "set", Means(tmp_path, RECIPE))


def test_an_uninformative_table_is_refused(
    label: Callable[..., Label], questions: Any, tiny_llama: Path, tmp_path: Path
) -> None:
    found = label(models=str(tiny_llama))
    file = tmp_path / "labels.parquet"
    pq.write_table(label_table(found, questions["id"][:]), file)
    allowed = label(table=str(file))
    np.testing.assert_array_equal(allowed.values, found.values)
    with pytest.raises(InputError, match="no better than guessing"):
        label(table=str(file), allow_uninformative=False)


def test_dynamics_are_of_a_run_in_random_order(
    label: Callable[..., Label], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sure = label(models=str(tiny_llama), measure="confidence")
    assert sure.values.min() >= 0
    assert sure.values.max() <= 1
    monkeypatch.setattr(model_labels, "training_dynamics", None)  # kept from the first time
    spread = label(models=str(tiny_llama), measure="variability")
    np.testing.assert_allclose(spread.values / 2, spread.details["variability"])
    np.testing.assert_allclose(1 - sure.values, sure.details["confidence"])
    assert np.corrcoef(sure.values, spread.values)[0, 1] < 0.99


def test_dynamics_in_the_form_asked_for(label: Callable[..., Label], tiny_llama: Path) -> None:
    cloze = label(models=str(tiny_llama), measure="confidence")
    letter = label(models=str(tiny_llama), measure="confidence", form="letter")
    assert not np.allclose(cloze.values, letter.values)


def test_cut_questions_are_counted(questions: Any, tiny_llama: Path, tmp_path: Path) -> None:
    spec = read_label_spec("difficulty", {"models": [tiny_llama], "allow_uninformative": True})

    def notes(max_tokens: int) -> list[str]:
        means = Means(tmp_path, RECIPE.model_copy(update={"max_tokens": max_tokens}))
        return make_label("difficulty", spec, questions, "set", means).notes

    assert not any("lost the beginning" in note for note in notes(400))
    assert any("48 questions longer than 40 tokens" in note for note in notes(40))


def test_length_needs_no_model(label: Callable[..., Label]) -> None:
    assert np.ptp(label(measure="length").values) > 0


def test_constant_difficulty() -> None:
    with pytest.raises(InputError, match=r"is 0\.5 for all 3 questions"):
        checked(Label("difficulty", np.full(3, 0.5), "somewhere"), "set")
    with pytest.raises(InputError, match="no question has a difficulty"):
        checked(Label("difficulty", np.full(3, np.nan), "somewhere"), "set")


def test_clusters_are_found_once_and_mapped(
    questions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def embed(texts: Any, *_: Any, **__: Any) -> Any:
        return np.eye(len(texts), dtype=np.float32)

    def cluster(vectors: Any, texts: Any, settings: Any, on_trial: Any) -> Clustering:
        calls.append(settings)
        n = len(texts)
        return Clustering(
            ["a", "b"] * (n // 2), np.arange(n) % 2, np.ones(n), np.zeros((n, 2)),
            {"neighbours": 5}, 0.0, ["a", "b"], ["a note"],
        )  # fmt: skip

    monkeypatch.setattr(labelling, "embed", embed)
    monkeypatch.setattr(labelling, "cluster", cluster)
    spec = read_label_spec("category", {"cluster": {"trials": 3}})
    for _ in range(2):
        found = make_label("category", spec, questions, "set", Means(tmp_path, RECIPE))
    assert found.values == ["a", "b"] * 24
    assert found.notes == ["a note"]
    assert found.place is not None
    assert found.place.shape == (48, 2)
    assert [settings.trials for settings in calls] == [3]


# In the study


def test_sources_by_name(make: Make) -> None:
    study = make(labels={"difficulty": ["human", "llm"], "category": ["human", "cluster"]},
                 strategies=["random", "blocked", "curriculum", "blocked_curriculum"])  # fmt: skip
    assert study.labels.difficulty["llm"].measure == "probability"
    names = [name for name, _, _ in arms(study)]
    assert names == [
        "random",
        "blocked [category=human]",
        "blocked [category=cluster]",
        "curriculum [difficulty=human]",
        "curriculum [difficulty=llm]",
        "blocked_curriculum [difficulty=human, category=human]",
        "blocked_curriculum [difficulty=human, category=cluster]",
        "blocked_curriculum [difficulty=llm, category=human]",
        "blocked_curriculum [difficulty=llm, category=cluster]",
    ]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"difficulty": ["human", "lm"]}, r"'lm' is no difficulty source.*Did you mean 'llm'"),
        ({"difficulty": {"x": {"cluster": {}}}}, "clusters are categories"),
        ({"category": {"x": {"measure": "loss"}}}, "give a column, a table or cluster"),
        ({"difficulty": {"x": {}}}, "found none of them"),
        ({"difficulty": {"x": {"column": "a", "answers": "b"}}}, "found answers and column"),
        ({"difficulty": {"x": {"measure": "length", "models": ["m"]}}}, "models go with"),
        ({"difficulty": {"x": {"column": "a", "form": "letter"}}}, "form goes with"),
        ({"difficulty": {"x": {"column": "a", "method": "2pl"}}}, "goes with answers"),
        ({"difficulty": {"x": {"column": "a", "key": "q"}}}, "key goes with"),
        ({"difficulty": {"": {"column": "a"}}}, "a source needs a name"),
        ({"difficulty": []}, "at least one source"),
    ],
)
def test_label_settings_that_cannot_be(make: Make, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(labels=labels)


def test_a_study_with_two_sources(
    make: Make, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(
        labels={
            "difficulty": {
                "human": None,
                "llm": {"models": str(tiny_llama), "allow_uninformative": True},
            }
        },
        strategies=["random", "curriculum"],
        seeds=1,
    )
    told: list[str] = []

    class Listening(Watch):
        def progress(self, text: str, done: int, total: int) -> None:
            told.append(f"{text} {done}/{total}")

    run_study(study, tmp_path, Listening())
    assert told[-1].endswith("48/48")
    record = read_record(tmp_path)
    assert {(s.kind, s.source) for s in record.label_sources} == {
        ("difficulty", "human"), ("difficulty", "llm"), ("category", "given"),
    }  # fmt: skip
    llm = next(s for s in record.label_sources if s.source == "llm")
    assert "probability of the right option" in llm.origin
    assert list(Folder(tmp_path).labels.glob("view-*.parquet"))
    outcome = record.outcomes[0]
    assert outcome.sources["curriculum [difficulty=llm]"] == {"difficulty": "llm"}
    # The order is by the label that was made.
    picture = next(p for p in record.orders if p.arm.endswith("llm]"))
    assert picture.difficulty is not None
    assert (np.diff(picture.difficulty) >= 0).all()
    monkeypatch.setattr(model_labels, "load", None)
    again = make_plan(study, Folder(tmp_path).labels)
    assert [r.id for r in again.runs] == [r.id for r in make_plan(study, tmp_path / "labels").runs]


def test_questions_without_a_label(make: Make, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "some.parquet"
    ids = [f"q{i}" for i in range(0, 48, 2)]
    pq.write_table(pa.table({"id": ids, "difficulty": np.linspace(0, 1, 24)}), table)
    labels: dict[str, Any] = {"difficulty": {"human": None, "other": {"table": str(table)}}}
    with pytest.raises(InputError, match="24 of 48 questions have no finite difficulty"):
        make_plan(make(labels=labels), tmp_path)
    plan = make_plan(make(labels=labels | {"missing": "drop"}), tmp_path)
    (training,) = plan.training
    assert training.questions["id"][:] == ids
    assert any("24 of 48 questions lack a label" in note for note in plan.notes)
    assert all(run.order is None or len(run.order) == 24 for run in plan.runs)
    assert len(training.labels["difficulty", "human"].values) == 24


def test_own_models_keep_their_settings() -> None:
    spec = LabelSpec(measure="loss", models=["a", "there"])
    own = [ModelSpec(model="a", recipe={"max_tokens": 64}), ModelSpec(model="b", name="there")]
    assert model_labels._models(spec, own) == own
    assert model_labels._models(LabelSpec(measure="loss"), own) == own
