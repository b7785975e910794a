"""Questions as token rows: the prompt once, the options after it as branches.

A row is all that the engine reads. Its shared prefix holds the tokens that every option's text
begins with; each option's remaining tokens are a branch, which sees the prefix and itself alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lessonplan.data.features import LETTERS
from lessonplan.errors import InputError

Form = Literal["cloze", "letter"]

# The paper's prompt (Yang et al. 2024, arXiv 2408.07888): a parameter of the experiment.
LETTER_PROMPT = (
    "Answer the following multiple choice question by giving the most appropriate response. "
    "Answer should be one among [{letters}].\n\nQuestion: {question}\n{options}\n\n### Answer:"
)
CLOZE_PROMPT = "Question: {question}\nAnswer:"


@dataclass(frozen=True, eq=False)
class Row:
    """One question (or a single answer to it) as tokens.

    Attributes:
        ids: int64 ``[T]`` token ids that are fed to the model.
        positions: int64 ``[T]`` position of each token in its own text.
        branch: int64 ``[T]``, 0 in the shared prefix, k + 1 in the branch of option k.
        read: int64 ``[R]`` where the next token's probability is read (an index into `ids`).
        target: int64 ``[R]`` the token that is scored there.
        option: int64 ``[R]`` the option that the scored token belongs to.
        n_options: number of options K.
        lengths: int64 ``[K]`` UTF-8 bytes of each option's text.
        cut: characters cut from the question's beginning to fit.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    branch: NDArray[np.int64]
    read: NDArray[np.int64]
    target: NDArray[np.int64]
    option: NDArray[np.int64]
    n_options: int
    lengths: NDArray[np.int64]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Text:
    """A prompt in three pieces (the question in the middle can be cut) and its continuations."""

    before: str
    question: str
    after: str
    continuations: list[str]

    @property
    def prompt(self) -> str:
        return self.before + self.question + self.after


def question_texts(
    questions: Any, form: Form, *, template: str | None = None, only_answer: bool = False
) -> list[Text]:
    """Return the text of every question under a scoring form.

    Args:
        questions: a question `Dataset`.
        form: "cloze" continues the prompt with each option's text, "letter" with each letter.
        template: a prompt with {question}, and with {options} and {letters} for the letter form;
            None takes the form's own.
        only_answer: leave only the right option's continuation, for training on it alone.

    Raises:
        InputError: the template lacks {question} or names something unknown.
    """
    template = template or (CLOZE_PROMPT if form == "cloze" else LETTER_PROMPT)
    if template.count("{question}") != 1:
        raise InputError(
            f"A prompt template must hold {{question}} once, and this does not: {template!r}"
        )
    unknown = set(re.findall(r"\{(\w+)\}", template)) - {"question", "options", "letters"}
    if unknown:
        raise InputError(
            f"The prompt template names {', '.join(f'{{{name}}}' for name in sorted(unknown))}; "
            "it can hold {question}, {options} and {letters}."
        )
    if form == "letter" and "{options}" not in template:
        raise InputError(
            f"A prompt template for letters must list the {{options}}, and this does not: "
            f"{template!r}"
        )
    before, after = template.split("{question}")
    texts = []
    for question, options, answer in zip(
        questions["question"], questions["options"], questions["answer"], strict=True
    ):
        if len(options) > len(LETTERS):
            raise InputError(f"A question has {len(options)} options; at most {len(LETTERS)} work.")
        letters = LETTERS[: len(options)]
        listed = "\n".join(f"{x}) {option}" for x, option in zip(letters, options, strict=True))
        # Replaced one by one, never by str.format: braces in a question are text.
        pieces = [
            piece.replace("{letters}", ", ".join(letters)).replace("{options}", listed)
            for piece in (before, after)
        ]
        continuations = list(options) if form == "cloze" else list(letters)
        if only_answer:
            continuations = [continuations[answer]]
        texts.append(Text(pieces[0], question, pieces[1], continuations))
    return texts


def unconditional_texts(questions: Any, *, template: str | None = None) -> list[Text]:
    """Return the options after the prompt's last line alone, to tell how likely they are anyway.

    An option that several questions have stands in the first one's text alone, so there may be
    fewer texts than questions.
    """
    tail = (template or CLOZE_PROMPT).rsplit("\n", 1)[-1]
    tail = "Answer:" if "{" in tail or not tail.strip() else tail
    known: set[str] = set()
    texts = []
    for options in questions["options"]:
        new = [option for option in dict.fromkeys(options) if option not in known]
        known.update(new)
        if new:
            texts.append(Text("", "", tail, new))
    return texts


def token_rows(
    tokenizer: Any, texts: Sequence[Text], *, max_tokens: int, names: Sequence[str] | None = None
) -> list[Row]:
    """Return one row a text.

    Prompt and continuation are encoded as one string, joined by a space, special tokens once, so
    the tokens are those that the model would see. Scored are the tokens whose characters end beyond
    the prompt. A text of more than `max_tokens` tokens loses the beginning of its question, never
    its options or answer; `Row.cut` says how much.

    Args:
        tokenizer: a fast tokenizer.
        texts: prompts and continuations.
        max_tokens: the most tokens that prompt and continuation may have together.
        names: what to call each text in an error, such as the question's id.

    Raises:
        InputError: a text is too long even without its question.
    """
    whole = [f"{text.prompt} {c}" for text in texts for c in text.continuations]
    if not whole:
        return []
    encoded = tokenizer(
        whole, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    special = encoded["special_tokens_mask"]
    rows = []
    first = 0
    for i, text in enumerate(texts):
        span = range(first, first + len(text.continuations))
        first = span.stop
        options = [_without_end(ids[k], offsets[k], special[k]) for k in span]
        excess = max(len(tokens) for tokens, _ in options) - max_tokens
        if excess > 0:
            name = names[i] if names is not None else f"text {i}"
            rows.append(_cut_row(tokenizer, text, excess, options, max_tokens, name))
        else:
            rows.append(_row(text, options, cut=0))
    return rows


def rows_digest(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of rows: equal digests are equal work for the engine."""
    digest = hashlib.sha256()
    for row in rows:
        for array in (
            row.ids,
            row.positions,
            row.branch,
            row.read,
            row.target,
            row.option,
            row.lengths,
        ):
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()


Encoded = tuple[list[int], list[tuple[int, int]]]


def _without_end(ids: list[int], offsets: list[tuple[int, int]], special: list[int]) -> Encoded:
    """Drop special tokens that a tokenizer adds at the end: the answer must be followed by none."""
    end = len(ids)
    while end > 1 and special[end - 1] and offsets[end - 1] == (0, 0):
        end -= 1
    return ids[:end], offsets[:end]


def _cut_row(
    tokenizer: Any, text: Text, excess: int, options: list[Encoded], max_tokens: int, name: str
) -> Row:
    """Cut the question from its beginning until the longest continuation fits."""
    start, full = len(text.before), text
    while True:
        _, offsets = max(options, key=lambda option: len(option[0]))
        stop = start + len(text.question)
        if not text.question:
            raise InputError(
                f"{name}: prompt, options and answer alone take {excess} tokens more than the "
                f"{max_tokens} allowed, even without the question. Raise max_tokens, or leave the "
                "question out."
            )
        inside = [end for begin, end in offsets if begin >= start and start < end <= stop]
        inside = inside or [stop]
        keep_from = inside[min(excess, len(inside)) - 1] - start
        text = Text(text.before, text.question[keep_from:].lstrip(), text.after, text.continuations)
        encoded = tokenizer(
            [f"{text.prompt} {c}" for c in text.continuations],
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        options = [
            _without_end(*entry)
            for entry in zip(
                encoded["input_ids"],
                encoded["offset_mapping"],
                encoded["special_tokens_mask"],
                strict=True,
            )
        ]
        excess = max(len(tokens) for tokens, _ in options) - max_tokens
        if excess <= 0:
            return _row(text, options, cut=len(full.question) - len(text.question))


def _row(text: Text, options: list[Encoded], cut: int) -> Row:
    beyond = len(text.prompt)
    tokens = [encoded[0] for encoded in options]
    # The last token of an option is only predicted, never fed; so the prefix ends before it.
    prefix = min(len(t) for t in tokens) - 1
    for other in tokens[1:]:
        same = next((j for j in range(prefix) if tokens[0][j] != other[j]), prefix)
        prefix = min(prefix, same)
    ids = list(tokens[0][:prefix])
    positions = list(range(prefix))
    branch = [0] * prefix
    read: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    for k, (option, offsets) in enumerate(options):
        base = len(ids) - prefix  # where this branch's tokens stand, less their position
        for j, (_, end) in enumerate(offsets):
            if end > beyond and j > 0:
                read.append(j - 1 if j - 1 < prefix else base + j - 1)
                target.append(option[j])
                owner.append(k)
        ids += option[prefix:-1]
        positions += range(prefix, len(option) - 1)
        branch += [k + 1] * (len(option) - 1 - prefix)
    if prefix < 1:
        raise InputError(f"The prompt {text.prompt!r} has no tokens before the answer.")
    if len(set(owner)) < len(options):
        bare = next(c for k, c in enumerate(text.continuations) if k not in owner)
        raise InputError(f"The option {bare!r} has no tokens of its own after {text.prompt!r}.")

    def column(values: list[int]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)

    return Row(
        ids=column(ids),
        positions=column(positions),
        branch=column(branch),
        read=column(read),
        target=column(target),
        option=column(owner),
        n_options=len(options),
        lengths=column([len(c.encode()) for c in text.continuations]),
        cut=cut,
    )


_ELSEWHERE = re.compile(
    r"\b(all|none|any|some|both|either|neither)\s+(of\s+)?(the\s+)?above\b"
    r"|^\W*(both|either|neither)\s+[a-e]{2}\W*$"
    r"|^\W*(both\s+|options?\s+|both\s+options?\s+)\d\s*(,|and|or|&)\s*\d\W*$|"
    r"^\W*(all|none|both|neither|any|either)\b.{0,12}\b(above|these|below|options|choices|them)\b"
    r"|^\W*(all|none|both|neither|any)\W*$"
    r"|^\W*(both|neither)?\W*\(?[a-e]\)?\W*(,|and|or|&|nor|\+)\W*\(?[a-e]\)?\W*"
    r"((,|and|or|&|\+)\W*\(?[a-e]\)?\W*)*(of the above|are correct|only)?\W*$",
    re.IGNORECASE,
)


def points_elsewhere(options: Sequence[str]) -> bool:
    """Say whether an option speaks of the others ("All of the above", "Both A and B").

    The text of such an option means nothing without the list, so cloze scoring cannot judge it.
    """
    return any(_ELSEWHERE.search(option.strip()) for option in options)
