"""A made-up record that looks like the demo's study: six orders, three seeds, 200 questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lessonplan.evaluation.outcomes import (
    Curve,
    LabelCheck,
    LabelSource,
    OrderPicture,
    Outcome,
    Record,
)

CHAPTERS = [
    "Certain infectious and parasitic diseases",
    "Neoplasms",
    "Diseases of the blood and blood-forming organs",
    "Endocrine, nutritional and metabolic diseases",
    "Mental, behavioral and neurodevelopmental disorders",
    "Diseases of the nervous system",
    "Diseases of the eye and adnexa",
    "Diseases of the ear and mastoid process",
    "Diseases of the circulatory system",
    "Diseases of the respiratory system",
    "Diseases of the digestive system",
    "Diseases of the skin and subcutaneous tissue",
    "Diseases of the musculoskeletal system and connective tissue",
    "Diseases of the genitourinary system",
    "Pregnancy, childbirth and the puerperium",
    "Certain conditions originating in the perinatal period",
    "Congenital malformations, deformations and chromosomal abnormalities",
    "Injury, poisoning and certain other consequences of external causes",
]
ARMS = (
    "random",
    "blocked",
    "interleaved",
    "curriculum",
    "blocked_curriculum",
    "interleaved_curriculum",
)
NEEDS = {
    "random": {},
    "blocked": {"category": "human"},
    "interleaved": {"category": "human"},
    "curriculum": {"difficulty": "human"},
    "blocked_curriculum": {"category": "human", "difficulty": "human"},
    "interleaved_curriculum": {"category": "human", "difficulty": "human"},
}


def make_outcome(
    gains: dict[str, float] | None = None,
    *,
    n_seeds: int = 3,
    level: float = 0.55,
    before: float = 0.28,
    model: str = "smollm2-135m",
    evaluation: str = "icd10cm",
    seed: int = 0,
    n_questions: int = 200,
) -> Outcome:
    """Draw right and wrong answers, the same questions hard for every arm."""
    rng = np.random.default_rng(seed)
    gains = gains or {}
    ability = rng.normal(0, 1.2, n_questions)

    def answers(rate: float, n: int) -> np.ndarray:
        shifted = np.quantile(ability, 1 - rate) if rate > 0 else np.inf
        return (ability + rng.normal(0, 0.5, (n, n_questions)) > shifted).astype(float)

    categories = [CHAPTERS[i] for i in rng.integers(len(CHAPTERS), size=n_questions)]
    arms = {arm: answers(level + gains.get(arm, 0.0), n_seeds) for arm in ARMS}
    untuned = answers(before, 1)[0]
    part = rng.permutation(n_questions)[:64]
    seen = np.array([0, 80, 160, 240, 320])
    curves = {}
    for arm in ARMS:
        reached = before + (level + gains.get(arm, 0.0) - before) * (1 - np.exp(-seen / 90))
        values = np.stack([answers(r, n_seeds)[:, part] for r in reached], axis=1)
        values[:, 0] = untuned[part]
        curves[arm] = Curve(seen, values)
    return Outcome(
        model=model,
        evaluation=evaluation,
        seeds=list(range(1, n_seeds + 1)),
        ids=[f"q{i}" for i in range(n_questions)],
        arms=arms,
        strategies={arm: arm for arm in ARMS},
        sources={arm: dict(NEEDS[arm]) for arm in ARMS},
        untuned=untuned,
        questions=[f"Under which chapter does term {i} stand?" for i in range(n_questions)],
        options=[[f"chapter {i + k}" for k in range(5)] for i in range(n_questions)],
        answers=rng.integers(5, size=n_questions),
        n_options=np.full(n_questions, 5),
        categories=categories,
        difficulty=rng.choice([0, 0.25, 0.5, 0.75, 1.0], n_questions),
        answer_seen=rng.random(n_questions) < 0.3,
        curves=curves,
    )


def make_orders(n: int = 320, seed: int = 0, training: str = "icd10cm") -> list[OrderPicture]:
    """Sort n labelled questions by the keys of the six strategies."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(len(CHAPTERS), 3.0))
    category = rng.choice(len(CHAPTERS), n, p=weights)
    difficulty = rng.choice([0, 0.25, 0.5, 0.75, 1.0], n)
    shuffle = rng.permutation(n)
    rank = rng.permutation(len(CHAPTERS))[category]

    def block(by: tuple[np.ndarray, ...]) -> np.ndarray:
        place = np.zeros(n, dtype=int)
        for c in np.unique(category):
            rows = np.flatnonzero(category == c)
            order = np.lexsort(tuple(key[rows] for key in by))
            place[rows[order]] = np.arange(len(rows)) * 3 // len(rows)
        return place

    keys = {
        "random": (shuffle,),
        "blocked": (shuffle, rank),
        "interleaved": (shuffle, rank, block((shuffle,))),
        "curriculum": (shuffle, difficulty),
        "blocked_curriculum": (shuffle, difficulty, rank),
        "interleaved_curriculum": (shuffle, difficulty, rank, block((shuffle, difficulty))),
    }
    steps = np.arange(n) // 8
    rate = 5e-4 * (1 - steps / (n / 8))
    return [
        OrderPicture(
            training, arm, 1, [CHAPTERS[c] for c in category[order]], difficulty[order], rate
        )
        for arm, order in ((arm, np.lexsort(k)) for arm, k in keys.items())
    ]


def make_check(rho: float = 0.3, n: int = 320, seed: int = 0) -> LabelCheck:
    """Draw a difficulty label whose correlation with the loss is about rho."""
    rng = np.random.default_rng(seed)
    difficulty = rng.choice([0, 0.25, 0.5, 0.75, 1.0], n)
    noise = rng.normal(size=n) * np.sqrt(1 - rho**2)
    loss = 2.0 + 0.6 * (rho * (difficulty - 0.5) / 0.354 + noise)
    return LabelCheck("smollm2-135m", "icd10cm", "human", difficulty, loss)


def make_sources(
    n: int = 320, *, seed: int = 0, training: str = "icd10cm", clusters: int = 6, leak: bool = False
) -> list[LabelSource]:
    """Draw two difficulties and two categories; the clusters are islands of three chapters each."""
    rng = np.random.default_rng(seed)
    chapter = rng.choice(len(CHAPTERS), n, p=rng.dirichlet(np.full(len(CHAPTERS), 3.0)))
    island = np.where(rng.random(n) < 0.8, chapter * clusters // 18, rng.integers(clusters, size=n))
    angle = 2 * np.pi * island / clusters
    radius = 4 + 2 * (island % 3)
    place = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    place += rng.normal(size=(n, 2)) * rng.uniform(0.3, 1.0, (clusters, 1))[island]
    answers = rng.integers(5, size=n)
    hard = rng.random(n)
    human = np.round(hard * 4) / 4
    llm = 0.4 * hard + 0.6 * rng.random(n) + (0.5 * (answers != 0) if leak else 0.0)
    names: list[str | None] = [f"{CHAPTERS[3 * i % 18].split()[-1]}, term {i}" for i in island]
    names[::25] = [None] * len(names[::25])
    chapters: list[str | None] = [CHAPTERS[c] for c in chapter]
    origin = "probability of the right option, smollm2-135m, cloze"
    return [
        LabelSource(training, "difficulty", "human", "column 'difficulty'", human, answers),
        LabelSource(training, "difficulty", "llm", origin, llm, answers),
        LabelSource(training, "category", "human", "column 'chapter'", chapters, answers),
        LabelSource(training, "category", "cluster", "HDBSCAN on UMAP", names, answers, place),
    ]


def by_source(
    outcome: Outcome, lift: float = 0.0, kinds: tuple[str, ...] = ("difficulty",)
) -> Outcome:
    """Run each arm that uses a label again under a second source of it."""
    rng = np.random.default_rng(8)
    second = {"difficulty": "llm", "category": "cluster"}
    arms, strategies, sources = {}, {}, {}
    for arm, values in outcome.arms.items():
        used = [k for k in kinds if k in NEEDS[arm]]
        for pick in range(2 ** len(used)):
            needs = dict(NEEDS[arm])
            for i, kind in enumerate(used):
                if pick >> i & 1:
                    needs[kind] = second[kind]
            shown = ", ".join(f"{k}={needs[k]}" for k in needs if k in used)
            name = f"{arm} [{shown}]" if shown else arm
            flip = rng.random(values.shape) < 0.1 if pick else np.zeros(values.shape, dtype=bool)
            again = np.where(flip, 1 - values, values)
            if needs.get("difficulty") == "llm":
                again = np.where(rng.random(values.shape) < lift, 1.0, again)
            arms[name], strategies[name], sources[name] = again, arm, needs
    return replace(outcome, arms=arms, strategies=strategies, sources=sources, curves={})


def make_record(outcomes: list[Outcome] | None = None, **fields: object) -> Record:
    """Put outcomes into a whole record, with everything that a study folder holds."""
    base: dict[str, object] = {
        "title": "ICD-10-CM demo",
        "outcomes": outcomes or [make_outcome({"interleaved": 0.015, "blocked": -0.03})],
        "orders": make_orders(),
        "label_checks": [make_check()],
        "config": "name: demo\nmodels: [smollm2-135m]\nseeds: [1, 2, 3]\n",
        "recipe": {"loss": "choice", "layers tuned": "top 8", "learning rate": "5e-4, linear"},
        "versions": {"torch": ["2.9.0"], "transformers": ["5.23.0", "5.24.0"]},
        "notes": ["2 questions were cut at their beginning to fit 512 tokens."],
        "runs_done": 18,
        "runs_planned": 18,
        "seconds": 611.0,
        "machine": "AMD EPYC, 2 threads",
    }
    return Record(**{**base, **fields})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def outcome() -> Callable[..., Outcome]:
    return make_outcome


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    return make_record


@pytest.fixture(scope="session")
def check() -> Callable[..., LabelCheck]:
    return make_check


@pytest.fixture(scope="session")
def orders() -> Callable[..., list[OrderPicture]]:
    return make_orders


@pytest.fixture(scope="session")
def sources() -> Callable[..., list[LabelSource]]:
    return make_sources


@pytest.fixture(scope="session")
def under_sources() -> Callable[..., Outcome]:
    return by_source
