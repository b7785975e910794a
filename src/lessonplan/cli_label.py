"""The commands of `lessonplan label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lessonplan.cli_options import (
    AnswerBaseOption,
    BadRowsOption,
    ColumnsOption,
    Data,
    LabelOut,
    OverwriteOption,
    ScoreOption,
    SetOption,
    SplitOption,
    check_out,
    questions_of,
    say,
)
from lessonplan.errors import InputError, counted

label_app = typer.Typer(help="Label questions: how hard they are, and what they are about.")


@label_app.command("difficulty")
def label_difficulty(
    data: Data,
    out: LabelOut,
    overwrite: OverwriteOption = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Name (`lessonplan models`), folder, .gguf, hub id, or NAME@http://host/v1 for "
            "one behind an OpenAI-compatible server. Several are averaged.",
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="By models: probability (of a wrong option), loss, margin, entropy; by a "
            "fine-tuning: confidence, variability; or length.",
        ),
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="cloze or letter (over all rotations of the options).")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="A table of question by respondent, instead of models.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="For --answers: share (wrong), or 1pl or 2pl (item response).")
    ] = "share",
    key: Annotated[str | None, typer.Option(help="Column of --answers with the id.")] = None,
    share_right: Annotated[
        str | None, typer.Option(help="A column with the share of people who were right.")
    ] = None,
    api: Annotated[str, typer.Option(help="For a server: completions or chat.")] = "completions",
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable with the server's key.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    per_minute: Annotated[float | None, typer.Option(help="Most requests a minute.")] = None,
    attempts: Annotated[int, typer.Option(help="Tries of a request before giving up.")] = 6,
    top: Annotated[int, typer.Option(help="Log-probabilities asked for a token.")] = 20,
    score: ScoreOption = "per_token",
    split: SplitOption = None,
    column: ColumnsOption = None,
    answer_base: AnswerBaseOption = None,
    bad_rows: BadRowsOption = "error",
    settings: SetOption = None,
) -> None:
    """Label how hard each question is, by models, people's answers or the text.

    The table has a row a question: id, difficulty (0 easiest, 1 hardest) and what it was made from.
    --set changes how a model is loaded and tuned: --set threads=4 --set max_tokens=1024.
    """
    from lessonplan.study.sources import TUNED, read_label_spec
    from lessonplan.training.recipe import LOADING, read_recipe, read_scoring

    sources = {
        "--model": model,
        "--measure": measure and not model,
        "--answers": answers,
        "--share-right": share_right,
    }
    given = [option for option, value in sources.items() if value]
    if len(given) != 1:
        raise InputError(
            "a difficulty is made from one of --model, --measure length, --answers and "
            f"--share-right; found {' and '.join(given) or 'none of them'}."
        )
    by_models = bool(model) or measure not in (None, "length")
    used = None if measure in TUNED else LOADING if by_models else ()
    recipe = read_recipe(settings or [], used)
    scoring = read_scoring(form or "cloze", score)
    if score != "per_token" and not by_models:
        raise InputError(f"--score {score} has no effect without a --model. Leave it out.")
    spec = read_label_spec(
        "difficulty",
        {
            "models": model or [],
            "measure": measure or ("probability" if model else None),
            "form": form,
            "answers": None if answers is None else str(answers),
            "method": method,
            "key": key,
            "share_right": share_right,
            "endpoint": {
                "api": api,
                "key_variable": key_variable,
                "concurrency": concurrency,
                "per_minute": per_minute,
                "attempts": attempts,
                "top": top,
            },
        },
    )
    check_out(out, data, answers, *(model or []), overwrite=overwrite)
    keep = [share_right] if share_right else []
    questions = questions_of(data, split, column, answer_base, bad_rows, keep)
    label = _write_label("difficulty", spec, questions, data, out, recipe, scoring)
    _say_summary(label, questions)


@label_app.command("category")
def label_category(
    data: Data,
    out: LabelOut,
    overwrite: OverwriteOption = False,
    embedder: Annotated[
        str, typer.Option(help="minilm (offline), pubmedbert (the paper's), folder or hub id.")
    ] = "minilm",
    embed: Annotated[
        str, typer.Option(help="question_and_options, or question alone.")
    ] = "question_and_options",
    trials: Annotated[int, typer.Option(help="Sets of parameters to try.")] = 30,
    noise: Annotated[
        str, typer.Option(help="nearest: into the nearest cluster; own: a category of its own.")
    ] = "nearest",
    seed: Annotated[int, typer.Option(help="Of the search and of UMAP.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads for the embeddings.")] = 2,
    split: SplitOption = None,
    column: ColumnsOption = None,
    answer_base: AnswerBaseOption = None,
    bad_rows: BadRowsOption = "error",
) -> None:
    """Label what each question is about, by clustering.

    The table has a row a question: id, category (named by its most typical words), the cluster's
    number, how sure its membership is, and a place on a map.
    """
    from lessonplan.study.sources import read_label_spec
    from lessonplan.training.recipe import Scoring, read_recipe

    cluster = {
        "embedder": embedder,
        "embed": embed,
        "trials": trials,
        "noise": noise,
        "seed": seed,
    }
    spec = read_label_spec("category", {"cluster": cluster})
    check_out(out, data, overwrite=overwrite)
    questions = questions_of(data, split, column, answer_base, bad_rows)
    recipe = read_recipe([f"threads={threads}"])
    label = _write_label("category", spec, questions, data, out, recipe, Scoring())
    _say_summary(label, questions)


def _write_label(
    kind: Any, spec: Any, questions: Any, data: str, out: Path, recipe: Any, scoring: Any
) -> Any:
    from datasets import Dataset

    from lessonplan.data import write_table
    from lessonplan.labels.label import label_table
    from lessonplan.models.loading import cache_folder
    from lessonplan.progress import StudyProgress
    from lessonplan.study.labelling import make_label
    from lessonplan.study.model_labels import Means

    with StudyProgress() as watch:
        label = make_label(
            kind,
            spec.model_copy(update={"allow_uninformative": True}),
            questions,
            data,
            Means(cache_folder() / "labels", recipe, scoring, watch=watch),
        )
    write_table(Dataset(label_table(label, questions["id"][:])), out)
    for note in label.notes:
        say(note)
    if lacking := int(label.missing.sum()):
        say(f"{lacking} of {len(questions)} questions have no {kind}; their cells are empty.")
    if label.uninformative:
        say("These labels say nothing of the questions; a study refuses them unless asked to.")
    say(f"{counted(len(questions), 'question')}, {kind} by {label.origin}: {out}")
    return label


def _say_summary(label: Any, questions: Any) -> None:
    """Say how a label agrees with the data's own, its models with each other, and what it leaks."""
    import numpy as np

    from lessonplan.data.features import are_completions
    from lessonplan.evaluation import LabelSource
    from lessonplan.report.source_section import agreement_sentence
    from lessonplan.statistics.sources import agreements, leak

    answers = None
    if not are_completions(questions):
        answers = np.asarray(questions["answer"][:], dtype=np.int64)
    named = {"this label": label.values}
    for column, values in label.details.items():
        if ": " in column and not column.startswith(("right: ", "missing: ")):
            named[column.split(": ", 1)[1]] = np.asarray(values.to_numpy(zero_copy_only=False))
    own = questions[label.kind][:]
    if None not in own:
        named["of the data"] = np.array(own) if label.kind == "difficulty" else own
    sources = [
        LabelSource("", label.kind, name, label.origin, values, answers)
        for name, values in named.items()
    ]
    said = [agreement_sentence(agreement) for agreement in agreements(sources)]
    if label.kind == "difficulty" and answers is not None:
        told = leak(sources[0])
        said.append(
            f"It tells {told.bits:.3f} of the {told.position_bits:.2f} bits of the right answer's "
            f"position (luck alone {told.luck:.3f}; p = {told.p:.2g})."
        )
    for sentence in said:
        say(sentence)
