"""Categories for questions that came without, by clustering their sentence embeddings."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lessonplan import seeds
from lessonplan.errors import InputError, nearest
from lessonplan.labels.embedding import check_texts, require_extra

# Part of the name that clusters are kept by: to be raised by what makes others of the same vectors.
CLUSTERING = 1
NO_CLUSTER = "(no cluster)"
UNSURE = 0.05  # a membership below this counts as unsure: arXiv 2408.07888
SMALLEST = 5  # questions; an order within fewer than that says nothing
DENSITY_NEIGHBOURS = 10  # HDBSCAN's min_samples; see `cluster`
MOST_IN_ONE = 0.5  # share of the clustered questions that one cluster may hold without a penalty
NAME_WORDS = 3
# Words of asking questions. Those of a field ("patient", "treatment") are left to the weighting,
# which lowers what is frequent in every cluster.
# fmt: off
ASKING = [
    "answer", "associated", "best", "called", "common", "commonly", "correct", "did",
    "does", "except", "false", "following", "given", "having", "include", "includes", "including",
    "incorrect", "known", "likely", "option", "options", "question", "regarding",
    "related", "seen", "statement", "statements", "true", "used",
]
# fmt: on


@dataclass(frozen=True)
class ClusterSettings:
    """How to look for clusters.

    The ranges span those of arXiv 2408.07888, which searched 8 to 20 neighbours, 3 to 15
    components and a smallest cluster of 25 to 35 for 874 questions, and 5 to 30, 3 to 20 and 200
    to 250 for 10,178. A range with equal ends fixes the parameter.

    Attributes:
        trials: parameters to try, 1 or more. A trial takes about two seconds for 2,400 questions
            on one core.
        noise: what becomes of the questions in no cluster: ``"nearest"`` gives each to the cluster
            with the nearest centroid (by cosine, among the embeddings), ``"own"`` makes them the
            category `NO_CLUSTER`.
        seed: the seed of search and maps, 0 or more.
        neighbours: UMAP's n_neighbors, the question itself among them: smallest and largest.
        components: dimensions of the map that is clustered: smallest and largest.
        min_share: HDBSCAN's min_cluster_size as a share of the questions: smallest and largest.
            It is rounded, and never below `SMALLEST` questions.
        few: fewest clusters that are welcome.
        many: most clusters that are welcome. What is outside is penalised, not forbidden.
    """

    trials: int = 30
    noise: Literal["nearest", "own"] = "nearest"
    seed: int = 0
    neighbours: tuple[int, int] = (5, 30)
    components: tuple[int, int] = (3, 20)
    min_share: tuple[float, float] = (0.02, 0.03)
    few: int = 6
    many: int = 20


@dataclass(frozen=True)
class Clustering:
    """What clustering found.

    Attributes:
        categories: the category of each question, one of `names`.
        cluster: int64[n], the cluster of each question before `ClusterSettings.noise` was applied:
            0 for the largest, -1 for none.
        membership: float64[n] in 0..1, HDBSCAN's probability, 0 for a question in no cluster.
        place: float64[n, 2], a map of the same embeddings in two dimensions, for a picture. Its
            units mean nothing.
        parameters: what the search chose: neighbours, components, min_cluster_size.
        cost: what the search minimised (`cluster`).
        names: the name of cluster 0, 1, ..., each once; then `NO_CLUSTER`, if that is a category.
        notes: sentences for the report.
    """

    categories: list[str]
    cluster: NDArray[np.int64]
    membership: NDArray[np.float64]
    place: NDArray[np.float64]
    parameters: dict[str, int]
    cost: float
    names: list[str]
    notes: list[str]


DEFAULT = ClusterSettings()


def cluster(
    vectors: NDArray[np.float32],
    texts: Sequence[str],
    settings: ClusterSettings = DEFAULT,
    on_trial: Callable[[int], None] | None = None,
) -> Clustering:
    """Sort questions into named categories, as arXiv 2408.07888 did.

    UMAP maps the embeddings into fewer dimensions, HDBSCAN finds dense regions there, and a
    Bayesian search (Optuna's tree-structured Parzen estimator) chooses the parameters of both.

    The study's cost is the share of questions with a membership below 5 %. Alone it is lowest
    where nearly everything is one cluster: on 2,381 questions of MedMCQA, two clusters with 95 %
    of the questions in one of them cost 0.02 and have an adjusted mutual information of 0.04 with
    the human subjects; ten clusters that cost 0.23 have 0.35. So two terms are added:

    - outside `few` to `many` clusters, 1 plus how far outside, relative to that bound. As a share
      is at most 1, any clustering inside is better than any outside, all else being well.
      Clusterings by this cost have long had such a term (0.15 in the package chat-intents).
    - where one cluster holds more than half of the clustered questions, twice the excess: 0 at a
      half, 1 where it holds all.

    Two further parameters are fixed. UMAP's min_dist is 0, as its documentation advises for
    clustering. HDBSCAN's min_samples is 10 (or the smallest cluster, if less), as its default, the
    smallest cluster itself, smooths the density over so many questions that two to six clusters
    are left of MedMCQA's 20 subjects.

    Neighbours are found exactly, once for all trials. Nothing is drawn but from the seed, and UMAP
    runs on one thread: the same input and settings give the same bytes on the same machine.

    Args:
        vectors: float[n, d], an embedding of each question, as from
            `lessonplan.labels.embedding.embed`. Length does not matter, direction does.
        texts: n texts, question and options, which the names are taken from.
        settings: how to search.
        on_trial: called after each trial with the number of trials done.

    Returns:
        The clustering with the lowest cost; of equals, the first found.

    Raises:
        InputError: settings that make no sense; embeddings and texts that do not go together, or
            are empty, not finite or all zero; too few different questions for so many clusters; no
            trial found two clusters; the extra `labels` is not installed.
    """
    _check_settings(settings)
    texts = check_texts(texts)
    unit = _unit(vectors, texts)
    _enough(unit, settings)
    require_extra("umap", "optuna")

    n = len(unit)
    neighbours = _neighbours(unit, settings.neighbours[1])
    seed = seeds.stream_seed(settings.seed, "clusters") % 2**32  # all that these libraries take
    maps: dict[tuple[int, int], NDArray[np.float32]] = {}
    found: dict[tuple[int, int, int], tuple[float, NDArray[np.int64], NDArray[np.float64]]] = {}

    def cost(k: int, d: int, size: int) -> float:
        if (k, d, size) not in found:
            if (k, d) not in maps:
                maps[k, d] = _map(unit, neighbours, k, d, seed, min_dist=0.0)
            labels, membership = _dense(maps[k, d], size)
            found[k, d, size] = (_cost(labels, membership, settings), labels, membership)
        return found[k, d, size][0]

    smallest, largest = _sizes(n, settings)
    _search(cost, settings, (smallest, largest), seed, on_trial)

    # max() + 1 is the number of clusters; a trial without any is no candidate.
    candidates = [p for p, (_, labels, _) in found.items() if labels.max() >= 1]
    if not candidates:
        raise InputError(
            f"No clusters were found in {n} questions: in each of {settings.trials} trials all "
            f"questions were in one cluster or in none. Either the questions are all about the "
            f"same, or a cluster is smaller than min_share allows ({smallest} questions): lower "
            "min_share, raise trials, or take another embedder."
        )
    best = min(candidates, key=lambda p: found[p][0])
    value, labels, membership = found[best]
    names = _names(texts, labels)
    noise = labels < 0
    assigned = labels.copy()
    if settings.noise == "nearest":
        assigned[noise] = _nearest_centroid(unit, labels)[noise]
    elif noise.any():
        names.append(NO_CLUSTER)
    place = _map(unit, neighbours, best[0], 2, seed, min_dist=0.1).astype(np.float64)
    return Clustering(
        categories=[names[c] for c in assigned],  # -1 is the last name
        cluster=labels,
        membership=membership,
        place=place,
        parameters={"neighbours": best[0], "components": best[1], "min_cluster_size": best[2]},
        cost=value,
        names=names,
        notes=_notes(labels, assigned, names, best, settings),
    )


def _check_settings(settings: ClusterSettings) -> None:
    if settings.trials < 1:
        raise InputError(f"trials has to be 1 or more, not {settings.trials}.")
    if settings.seed < 0:
        raise InputError(f"seed has to be 0 or more, not {settings.seed}.")
    if settings.noise not in ("nearest", "own"):
        hint = nearest(str(settings.noise), ("nearest", "own"))
        raise InputError(f"noise is 'nearest' or 'own', not {settings.noise!r}.{hint}")
    for name, least in (("neighbours", 2), ("components", 2)):
        low, high = getattr(settings, name)
        if not least <= low <= high:
            raise InputError(
                f"{name} has to be a smallest and a largest number, {least} or more, not "
                f"({low}, {high})."
            )
    low_share, high_share = settings.min_share
    if not 0 < low_share <= high_share < 0.5:
        raise InputError(
            "min_share has to be a smallest and a largest share between 0 and 0.5, not "
            f"({low_share}, {high_share})."
        )
    if not 2 <= settings.few <= settings.many:
        raise InputError(
            f"few and many have to be 2 or more and in this order, not {settings.few} and "
            f"{settings.many}."
        )


def _unit(vectors: NDArray[Any], texts: list[str]) -> NDArray[np.float32]:
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise InputError(
            f"There are {len(texts)} texts, so embeddings of shape ({len(texts)}, d) are needed, "
            f"a row for each; found shape {vectors.shape}."
        )
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise InputError(
            f"{bad.sum()} of {len(bad)} embeddings are not finite, the first in row "
            f"{np.argmax(bad) + 1}. Make them anew with another embedder."
        )
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not lengths.all():
        raise InputError(
            f"The embedding in row {np.argmin(lengths) + 1} is all zeros, which has "
            "no direction. Make the embeddings anew with another embedder."
        )
    return np.ascontiguousarray(vectors / lengths, dtype=np.float32)


def _enough(unit: NDArray[np.float32], settings: ClusterSettings) -> None:
    # Twice the smallest cluster for each cluster wanted, as about half of the questions are in
    # none; and UMAP needs more points than neighbours, and than dimensions and one to start from.
    least = max(2 * SMALLEST * settings.few, settings.neighbours[1] + 1, settings.components[1] + 2)
    different = len(np.unique(unit, axis=0))
    if different < least:
        raise InputError(
            f"There are {len(unit)} questions, {different} of them different; clustering needs "
            f"{least} different ones to find {settings.few} clusters (few) of {SMALLEST} questions "
            f"or more among up to {settings.neighbours[1]} neighbours. Take more questions, or "
            "name their categories in a column."
        )


def _sizes(n: int, settings: ClusterSettings) -> tuple[int, int]:
    low, high = (max(SMALLEST, round(share * n)) for share in settings.min_share)
    return low, high


def _neighbours(unit: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the k nearest of each row by cosine, nearest first, itself in front.

    Returns:
        int32[n, k] rows and float32[n, k] distances 1 - cosine.
    """
    n = len(unit)
    rows = np.empty((n, k), dtype=np.int32)
    distances = np.empty((n, k), dtype=np.float32)
    for start in range(0, n, 1024):  # 1024 rows at a time, for n x n may not fit the memory
        stop = min(start + 1024, n)
        block = 1 - unit[start:stop] @ unit.T
        np.maximum(block, 0, out=block)
        # A question stands in front of its duplicates, as UMAP expects.
        block[np.arange(stop - start), np.arange(start, stop)] = -1
        order = np.argsort(block, axis=1, kind="stable")[:, :k]
        rows[start:stop] = order
        distances[start:stop] = np.maximum(np.take_along_axis(block, order, axis=1), 0)
    return rows, distances


def _map(
    unit: NDArray[np.float32],
    neighbours: tuple[NDArray[np.int32], NDArray[np.float32]],
    k: int,
    dimensions: int,
    seed: int,
    *,
    min_dist: float,
) -> NDArray[np.float32]:
    with _quiet():
        import umap

        # Cut to k here: below 4,096 rows UMAP takes all columns of a longer table, whatever k.
        # Copied, since UMAP may write into them.
        rows, distances = (np.array(part[:, :k]) for part in neighbours)
        reducer = umap.UMAP(
            n_neighbors=k,
            n_components=dimensions,
            min_dist=min_dist,
            metric="cosine",
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(rows, distances),
        )
        points: NDArray[np.float32] = reducer.fit_transform(unit)
    return points


def _dense(
    points: NDArray[np.float32], smallest: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return HDBSCAN's clusters, the largest first (0), -1 for none, and its probabilities."""
    from sklearn.cluster import HDBSCAN

    model = HDBSCAN(
        min_cluster_size=smallest, min_samples=min(DENSITY_NEIGHBOURS, smallest), copy=True
    ).fit(points)
    labels = np.asarray(model.labels_, dtype=np.int64)
    inside = labels >= 0
    order = np.argsort(-np.bincount(labels[inside], minlength=1), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    renamed = np.where(inside, rank[np.maximum(labels, 0)], -1).astype(np.int64)
    return renamed, np.asarray(model.probabilities_, dtype=np.float64)


def _cost(
    labels: NDArray[np.int64], membership: NDArray[np.float64], settings: ClusterSettings
) -> float:
    count = int(labels.max()) + 1
    unsure = float(np.mean(membership < UNSURE))
    outside = 0.0
    if count < settings.few:
        outside = 1 + (settings.few - count) / settings.few
    elif count > settings.many:
        outside = 1 + (count - settings.many) / settings.many
    largest = np.mean(labels[labels >= 0] == 0) if count else 1.0  # cluster 0 is the largest
    return float(unsure + outside + max(0.0, largest - MOST_IN_ONE) / (1 - MOST_IN_ONE))


def _search(
    cost: Callable[[int, int, int], float],
    settings: ClusterSettings,
    sizes: tuple[int, int],
    seed: int,
    on_trial: Callable[[int], None] | None,
) -> None:
    import optuna

    def objective(trial: optuna.Trial) -> float:
        return cost(
            trial.suggest_int("neighbours", *settings.neighbours),
            trial.suggest_int("components", *settings.components),
            trial.suggest_int("min_cluster_size", *sizes),
        )

    def done(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if on_trial is not None:
            on_trial(trial.number + 1)

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(objective, n_trials=settings.trials, callbacks=[done])
    finally:
        optuna.logging.set_verbosity(verbosity)


def _nearest_centroid(unit: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    count = int(labels.max()) + 1
    centroids = np.stack([unit[labels == c].mean(axis=0) for c in range(count)])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return np.asarray(np.argmax(unit @ centroids.T, axis=1), dtype=np.int64)


def _names(texts: list[str], labels: NDArray[np.int64]) -> list[str]:
    """Name each cluster by its most typical words.

    The weight of a word is a class-based TF-IDF: the share of the cluster's questions that have
    it, times the logarithm of how much larger this is than the share of all clustered questions.
    So a word that is as frequent everywhere weighs nothing, which the usual form (Grootendorst
    2022, arXiv 2203.05794) does not attain with few clusters. Questions are counted, not
    occurrences, so that one long question does not name a cluster.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    count = int(labels.max()) + 1
    names = [f"cluster {c + 1}" for c in range(count)]
    try:
        vectorizer = CountVectorizer(
            binary=True,
            stop_words=[*ENGLISH_STOP_WORDS, *ASKING],
            token_pattern=r"(?u)\b[^\W\d_]{3,}\b",
        )
        present = vectorizer.fit_transform(texts)
    except ValueError:  # no text has a word of three letters
        return names
    words = vectorizer.get_feature_names_out()
    per_cluster = np.stack(
        [np.asarray(present[labels == c].sum(axis=0)).ravel() for c in range(count)]
    ).astype(np.float64)
    sizes = np.bincount(labels[labels >= 0], minlength=count)
    inside = per_cluster / sizes[:, None]
    everywhere = per_cluster.sum(axis=0) / sizes.sum()
    # A word of no cluster is 0 of 0 here, and weighs nothing.
    ratio = np.divide(inside, everywhere, out=np.zeros_like(inside), where=inside > 0)
    weight = inside * np.log(ratio, out=np.zeros_like(inside), where=inside > 0)

    taken: set[str] = set()
    for c in range(count):
        typical: list[str] = []
        for j in np.argsort(-weight[c], kind="stable"):
            if weight[c, j] <= 0:
                break
            word = str(words[j])
            if any(_one_stem(word, other) for other in typical):
                continue
            typical.append(word)
            # A further word where another cluster has the same words.
            if len(typical) >= NAME_WORDS and ", ".join(typical) not in taken:
                break
        name = ", ".join(typical) or names[c]
        if name in taken:
            name = next(
                f"{name} ({i})" for i in range(2, count + 2) if f"{name} ({i})" not in taken
            )
        taken.add(name)
        names[c] = name
    return names


def _one_stem(a: str, b: str) -> bool:
    """Tell whether two words look like forms of one: artery, arteries; muscle, muscular."""
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    shorter = min(len(a), len(b))
    common = shorter if common is None else common
    return common >= max(4, shorter - 2) or (common == shorter and abs(len(a) - len(b)) <= 2)


def _notes(
    labels: NDArray[np.int64],
    assigned: NDArray[np.int64],
    names: list[str],
    parameters: tuple[int, int, int],
    settings: ClusterSettings,
) -> list[str]:
    n, count, none = len(labels), int(labels.max()) + 1, int((labels < 0).sum())
    notes = [
        f"{count} clusters were found among {n} questions, with {parameters[0]} neighbours, "
        f"{parameters[1]} components and a smallest cluster of {parameters[2]}."
    ]
    if not none:
        notes.append("Every question is in a cluster.")
    elif settings.noise == "nearest":
        notes.append(
            f"{none} of {n} questions ({none / n:.0%}) were in no cluster; each was given to the "
            "cluster with the nearest centroid."
        )
    else:
        notes.append(
            f"{none} of {n} questions ({none / n:.0%}) were in no cluster; they are the category "
            f"'{NO_CLUSTER}'."
        )
    if not settings.few <= count <= settings.many:
        notes.append(
            f"No trial found {settings.few} to {settings.many} clusters; the best found {count}."
        )
    sizes = np.bincount(assigned[assigned >= 0], minlength=count)
    if sizes.max() > MOST_IN_ONE * n:
        notes.append(
            f"One category, '{names[int(sizes.argmax())]}', holds {sizes.max() / n:.0%} of the "
            "questions; orders by category will differ little."
        )
    return notes


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal what UMAP warns of and is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensorflow not installed")
        # New questions are never mapped, so no search index is needed.
        warnings.filterwarnings("ignore", message=re.escape("precomputed_knn[2]"))
        # Well separated clusters have no edges between them; UMAP then places each by itself.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        warnings.filterwarnings("ignore", category=UserWarning, module=r"umap\.spectral")
        yield
