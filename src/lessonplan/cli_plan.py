"""The command `lessonplan plan`: how many seeds and questions it takes to see a gain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessonplan.cli_options import console
from lessonplan.errors import InputError, counted

if TYPE_CHECKING:
    from lessonplan.statistics.power import Components
    from lessonplan.study import Study
    from lessonplan.study.cost import Cost, Work

SEEDS = (3, 5, 10, 20)
MULTIPLES = (1, 2, 4)


@dataclass(frozen=True)
class Comparison:
    """One model on one evaluation set, as it is planned.

    Attributes:
        place: "model on evaluation set".
        set: the set's name, that of the training set for held-out folds.
        arms: how many, baseline included.
        found: components; None where nothing can be planned, and `origin` says why.
        origin: where the components are from, one sentence.
    """

    place: str
    set: str
    metric: str
    questions: int
    arms: int
    found: Components | None
    origin: str


@dataclass(frozen=True)
class Layout:
    """What a study asks for.

    Attributes:
        family: tests that Holm's correction runs over.
        seeds: how many it has.
        sizes: the number of questions of each training and evaluation set.
        cost: what a question takes here; None where unknown.
    """

    study: Study
    comparisons: list[Comparison]
    family: int
    seeds: int
    sizes: dict[str, int]
    cost: Cost | None

    def work(self, grown: Comparison | None = None, questions: int = 0) -> Work:
        """Return the work of one seed, with another number of questions in one set."""
        from lessonplan.study.cost import seed_work

        sizes: dict[str, float] = dict(self.sizes)
        if grown is not None:
            sizes[grown.set] *= questions / grown.questions
        return seed_work(self.study, sizes)

    @property
    def runs_per_seed(self) -> int:
        """Fine-tunings of one seed."""
        return self.work().runs


def plan(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="A study's folder, finished or not, or file.")
    ],
    gain: Annotated[
        float | None,
        typer.Option(help="A gain to plan for, in points of accuracy (or in units of the score)."),
    ] = None,
    power: Annotated[float, typer.Option(help="Probability of seeing it.")] = 0.8,
    like: Annotated[
        Path | None,
        typer.Option(
            help="A study's folder: gains of STUDY vary as its do, and a question takes as long."
        ),
    ] = None,
    questions: Annotated[
        list[int] | None, typer.Option(help="Evaluation questions; may be given several times.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(help="Seeds; may be given several times.")
    ] = None,
) -> None:
    """Say which gains a study can see with how many seeds and questions, and at what cost."""
    from rich.text import Text

    _check(gain, power, questions, seeds)
    laid_out = _of_folder(study, like) if study.is_dir() else _of_file(study, like)
    terminal = console()
    for comparison in laid_out.comparisons:
        if comparison.found is None:
            terminal.print(Text(f"{comparison.place}: {comparison.origin}\n"))
            continue
        if gain is None:
            table = _smallest_table(laid_out, comparison, power, questions, seeds)
        else:
            table = _needed_table(laid_out, comparison, gain, power, questions)
        terminal.print(table)
        terminal.print(Text(comparison.origin + "\n"))
    terminal.print(Text(_cost_words(laid_out)))


def _check(
    gain: float | None, power: float, questions: list[int] | None, seeds: list[int] | None
) -> None:
    if not 0 < power < 1:
        raise InputError(f"--power is a probability between 0 and 1, such as 0.8, not {power:g}.")
    if gain is not None and not gain > 0:
        raise InputError(f"--gain is a number above 0, such as 2 for two points, not {gain:g}.")
    if gain is not None and seeds:
        raise InputError(
            "--seeds has no effect with --gain, which asks how many seeds it takes. Leave out one "
            "of them."
        )
    for option, least, given in (("--questions", 2, questions), ("--seeds", 3, seeds)):
        for number in given or []:
            if number < least:
                raise InputError(f"{option} takes {least} or more, not {number}.")


def _of_folder(path: Path, like: Path | None) -> Layout:
    import pyarrow.parquet as pq

    from lessonplan.statistics.family import judged
    from lessonplan.statistics.power import components
    from lessonplan.study import load_study, read_record
    from lessonplan.study.cost import run_cost
    from lessonplan.study.plan import named_evaluations
    from lessonplan.study.store import open_folder

    record = read_record(path)
    folder = open_folder(path)
    study = load_study(folder.study_file)
    names = [spec.title for spec in [*study.training, *study.evaluation]]
    sets = dict(named_evaluations(study))
    comparisons = []
    for outcome in record.outcomes:
        found, origin = components(outcome), ""
        questions = int(judged(outcome).sum())
        lacking = _too_small(len(outcome.arms), questions) or _limit(outcome)
        if lacking:
            found, origin = None, lacking
        elif found is not None and like is None:
            origin = (
                "Components of a gain from the study's own runs "
                f"({found.df} degrees of freedom between seeds): {_words(found, outcome.metric)}."
            )
        else:
            found, origin = _elsewhere(like, outcome.metric)
        comparisons.append(
            Comparison(
                outcome.place,
                sets[outcome.evaluation],
                outcome.metric,
                questions,
                len(outcome.arms),
                found,
                origin,
            )
        )
    return Layout(
        study,
        comparisons,
        sum(c.arms - 1 for c in comparisons),
        len(study.seeds),
        {name: pq.read_metadata(folder.data(name)).num_rows for name in names},
        run_cost(path) or (None if like is None else run_cost(like)),
    )


def _too_small(arms: int, questions: int) -> str:
    """Say why so few orders or questions leave nothing to plan, "" where they are enough."""
    few = "order" if arms < 2 else "question" if questions < 2 else ""
    return few and f"nothing can be planned, since there is a single {few}."


def _limit(outcome: Any) -> str:
    """Say why an outcome's scores tell nothing about orders, "" where they do."""
    from lessonplan.statistics.analysis import limit

    reached = limit(outcome)
    return reached and (
        f"nothing can be planned, since the model is at the {reached} here, as far as these "
        "questions tell."
    )


def _of_file(path: Path, like: Path | None) -> Layout:
    from lessonplan.data.features import are_completions
    from lessonplan.evaluation.outcomes import place_of
    from lessonplan.evaluation.scores import LIKELIHOODS
    from lessonplan.statistics.result import ACCURACY
    from lessonplan.study import load_study
    from lessonplan.study.arms import arms
    from lessonplan.study.config import DataSpec
    from lessonplan.study.cost import run_cost
    from lessonplan.study.plan import named_evaluations
    from lessonplan.study.sets import read_set

    study = load_study(path)
    cost = None if like is None else run_cost(like)  # first: reading data may take long

    def size(spec: DataSpec) -> tuple[int, str]:
        """Return the number of questions and the metric of their scores."""
        questions = read_set(spec).questions
        score = study.scoring.score
        metric = LIKELIHOODS.get(score, score) if are_completions(questions) else ACCURACY
        return min(len(questions), spec.sample or len(questions)), metric

    names = [name for name, _, _ in arms(study)]
    found = {spec.title: size(spec) for spec in [*study.training, *study.evaluation]}
    sizes = {name: n for name, (n, _) in found.items()}
    known = {
        metric: _elsewhere(like, metric)
        for metric in dict.fromkeys(found[name][1] for _, name in named_evaluations(study))
    }
    comparisons = []
    for model in study.models:
        for evaluation, name in named_evaluations(study):
            n, metric = found[name]
            lacking = _too_small(len(names), n)
            parts, origin = (None, lacking) if lacking else known[metric]
            place = place_of(model.title, evaluation)
            comparisons.append(Comparison(place, name, metric, n, len(names), parts, origin))
    return Layout(
        study,
        comparisons,
        sum(c.arms - 1 for c in comparisons),
        len(study.seeds),
        sizes,
        cost,
    )


def _elsewhere(like: Path | None, metric: str) -> tuple[Components | None, str]:
    """Return components from another study, or those that are taken where nothing is known."""
    from lessonplan.statistics.power import DEMO, components, mean_components
    from lessonplan.statistics.result import ACCURACY
    from lessonplan.study import read_record

    if like is None and metric != ACCURACY:
        return None, (
            f"nothing can be planned yet, since it is not known how gains in {metric} vary. Run "
            "two seeds or more, or take them from a study that was run, with --like FOLDER."
        )
    if like is None:
        return DEMO, (
            "Components of a gain as stated in lessonplan, from its demo (SmolLM2-135M tuned on "
            f"320 questions of ICD-10-CM, three seeds): {_words(DEMO, metric)}. A guess for other "
            "models and data: --like FOLDER takes those of a study that was run."
        )
    outcomes = [o for o in read_record(like).outcomes if o.metric == metric and not _limit(o)]
    known = [c for c in map(components, outcomes) if c is not None]
    if not known:
        raise InputError(
            f"{like}: no model there has two seeds of some order and its baseline, away from floor "
            "and ceiling, so it cannot say how gains vary."
        )
    found = mean_components(known)
    return found, f"Components of a gain from {like}: {_words(found, metric)}."


def _words(found: Components, metric: str) -> str:
    from lessonplan.statistics.verdict import amount

    between, high, question, rest = (
        amount(x**0.5, metric) for x in (found.seed, found.seed_high, found.question, found.rest)
    )
    sure = f" (at most {high}, with 90% confidence)" if found.seed_high > found.seed else ""
    return (
        f"it differs by {between} from seed to seed{sure}, by {question} from question to question "
        f"and by {rest} beyond that (standard deviations)"
    )


def _smallest_table(
    laid_out: Layout,
    comparison: Comparison,
    power: float,
    questions: list[int] | None,
    seeds: list[int] | None,
) -> Any:
    from rich.table import Table
    from rich.text import Text

    from lessonplan.statistics.power import smallest_gain
    from lessonplan.statistics.verdict import signed, unit

    sizes = questions or [comparison.questions * m for m in MULTIPLES]
    measured = unit(comparison.metric) and f" in{unit(comparison.metric)}"
    rows = sorted(set(seeds or {*SEEDS, laid_out.seeds} - {0, 1, 2}))
    table = Table(
        title=Text(
            f"{comparison.place}: the smallest gain{measured} that is seen with a power of "
            f"{power:.0%}, {_holm(laid_out)}"
        ),
        title_justify="left",
    )
    table.add_column("seeds", justify="right")
    table.add_column("runs", justify="right")
    for size in sizes:
        table.add_column(counted(size, "question"), justify="right")
    for number in rows:
        cells = []
        for size in sizes:
            low, high = (
                signed(
                    smallest_gain(
                        c, number, size, arms=comparison.arms, level=_level(laid_out), power=power
                    ),
                    comparison.metric,
                ).lstrip("+")
                for c in _both(comparison)
            )
            cell = low if low == high else f"{low} to {high}"
            cells.append(cell + _hours(laid_out, comparison, number, size))
        table.add_row(str(number), str(number * laid_out.runs_per_seed), *cells)
    return table


def _needed_table(
    laid_out: Layout,
    comparison: Comparison,
    gain: float,
    power: float,
    questions: list[int] | None,
) -> Any:
    from rich.table import Table
    from rich.text import Text

    from lessonplan.statistics.power import MOST_SEEDS, seeds_needed
    from lessonplan.statistics.result import ACCURACY
    from lessonplan.statistics.verdict import amount

    wanted = gain / 100 if comparison.metric == ACCURACY else gain
    table = Table(
        title=Text(
            f"{comparison.place}: seeds needed to see a gain of "
            f"{amount(wanted, comparison.metric)} with a power of {power:.0%}, {_holm(laid_out)}"
        ),
        title_justify="left",
    )
    for heading in ("questions", "seeds", "runs", "hours here"):
        table.add_column(heading, justify="right")
    for size in questions or [comparison.questions * m for m in (*MULTIPLES, 8, 16)]:
        needed = [
            seeds_needed(c, wanted, size, arms=comparison.arms, level=_level(laid_out), power=power)
            for c in _both(comparison)
        ]
        columns: list[list[str]] = [[], [], []]
        for number in dict.fromkeys(needed):
            if number is None:
                shown = [f"over {MOST_SEEDS}", "–", "–"]
            else:
                hours = _hours(laid_out, comparison, number, size).strip(" ()h")
                shown = [str(number), str(number * laid_out.runs_per_seed), hours or "unknown"]
            for column, text in zip(columns, shown, strict=True):
                column.append(text)
        table.add_row(str(size), *(" to ".join(dict.fromkeys(c)) for c in columns))
    return table


def _both(comparison: Comparison) -> list[Components]:
    assert comparison.found is not None
    return [comparison.found, comparison.found.cautious]


def _level(laid_out: Layout) -> float:
    from lessonplan.statistics.family import ALPHA

    return ALPHA / max(laid_out.family, 1)


def _holm(laid_out: Layout) -> str:
    return f"after Holm's correction over {counted(laid_out.family, 'test')}"


def _hours(laid_out: Layout, comparison: Comparison, seeds: int, questions: int) -> str:
    if laid_out.cost is None:
        return ""
    seconds = laid_out.work(comparison, questions).seconds(laid_out.cost)
    hours = seeds * seconds / laid_out.study.workers / 3600
    return f" ({hours:.2g} h)" if hours < 10 else f" ({hours:.0f} h)"


def _cost_words(laid_out: Layout) -> str:
    cost = laid_out.cost
    said = f"A seed takes {counted(laid_out.runs_per_seed, 'run')}"
    two = (
        " Where two figures stand, the second takes the variation between seeds at its upper 90% "
        "bound."
        if any(c.found is not None and c.found.cautious != c.found for c in laid_out.comparisons)
        else ""
    )
    if cost is None:
        return (
            f"{said}; what a run takes here is unknown until some are done (or with --like).{two}"
        )
    work = laid_out.work()
    tuning, scoring = cost.tuning * work.trained, cost.scoring * work.scored
    sets = {comparison.set for comparison in laid_out.comparisons}
    others = ", with the other sets as they are" if len(sets) > 1 else ""
    return (
        f"{said}, a run {tuning / work.runs:.0f} s of tuning and {scoring / work.runs:.0f} s of "
        f"scoring, with {counted(laid_out.study.workers, 'worker')}. Hours are for all runs of the "
        f"study{others}; what is finished is kept.{two}"
    )
