"""Questions as token rows: a tree of tokens, in which what several texts begin with stands once.

A row is all that the engine reads. It holds the texts of all options of a question; each token
sees those that stand before it in its own text alone. The prompt stands once, and so does what
some of the options have in common.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lessonplan.data.features import LETTERS, are_completions
from lessonplan.errors import InputError, counted
from lessonplan.models.completions import completion_tokens

Form = Literal["cloze", "letter"]

# The paper's prompt (Yang et al. 2024, arXiv 2408.07888): a parameter of the experiment.
LETTER_PROMPT = (
    "Answer the following multiple choice question by giving the most appropriate response. "
    "Answer should be one among [{letters}].\n\nQuestion: {question}\n{options}\n\n### Answer:"
)
CLOZE_PROMPT = "Question: {question}\nAnswer:"


@dataclass(frozen=True, eq=False)
class Row:
    """One question (or a single answer to it) as tokens, parents before children, depth first.

    Attributes:
        ids: int64 ``[T]`` token ids that are fed to the model.
        positions: int64 ``[T]`` position of each token in its own text.
        end: int64 ``[T]`` where the texts that a token belongs to end: the tokens ``i`` to
            ``end[i] - 1`` see token i, and no others.
        read: int64 ``[R]`` where the next token's probability is read (an index into `ids`).
        target: int64 ``[R]`` the token that is scored there.
        option: int64 ``[R]`` the option that the scored token belongs to.
        n_options: number of options K.
        lengths: int64 ``[K]`` UTF-8 bytes of each option's text.
        cut: characters cut from the question's beginning to fit.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    end: NDArray[np.int64]
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


def question_rows(
    tokenizer: Any,
    questions: Any,
    form: Form,
    *,
    template: str | None,
    max_tokens: int,
    only_answer: bool = False,
    name: str = "question",
) -> list[Row]:
    """Return one row a question: `token_rows` of its `question_texts`, or `completion_tokens`.

    Args:
        name: what stands before a question's id in an error.
    """
    names = [f"{name} {identifier}" for identifier in questions["id"]]
    if are_completions(questions):
        found = completion_tokens(tokenizer, questions, max_tokens=max_tokens, names=names)
        sizes = [len(options[0].encode()) for options in questions["options"]]
        return [
            token_tree([tokens.ids], [tokens.first], [size], tokens.cut)
            for tokens, size in zip(found, sizes, strict=True)
        ]
    texts = question_texts(questions, form, template=template, only_answer=only_answer)
    return token_rows(tokenizer, texts, max_tokens=max_tokens, names=names)


def rotated_texts(questions: Any, *, template: str | None = None) -> list[list[Text]]:
    """Return every question K times in the letter form, its K options rotated by 0 to K - 1 places.

    In rotation r the letter number k stands before option ``(k + r) % K``, so over all of them each
    option stands once behind each letter. A question with options that speak of the others
    (`points_elsewhere`) stands there once, as it is: "Both A and B" would be another option if
    others stood behind A and B.
    """
    turned: dict[str, list[Any]] = {"question": [], "options": [], "answer": []}
    sizes = []
    for question, options in zip(questions["question"], questions["options"], strict=True):
        turns = 1 if points_elsewhere(options) else len(options)
        sizes.append(turns)
        for r in range(turns):
            turned["question"].append(question)
            turned["options"].append([*options[r:], *options[:r]])
            turned["answer"].append(0)  # all letters stand in the text, whichever is right
    texts = iter(question_texts(turned, "letter", template=template))
    return [list(itertools.islice(texts, size)) for size in sizes]


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
    return joint_rows(tokenizer, [[text] for text in texts], max_tokens=max_tokens, names=names)


def joint_rows(
    tokenizer: Any,
    groups: Sequence[Sequence[Text]],
    *,
    max_tokens: int,
    names: Sequence[str] | None = None,
) -> list[Row]:
    """Return one row a group of texts about the same question, such as its options rotated.

    The options of a row are the continuations of its texts, text after text. All texts of a group
    begin alike and are cut alike. Arguments and errors as for `token_rows`.
    """
    whole = [full for group in groups for full in _full_texts(group)]
    if not whole:
        return []
    encoded = _encoded(tokenizer, whole)
    rows = []
    first = 0
    for i, group in enumerate(groups):
        size = sum(len(text.continuations) for text in group)
        options = encoded[first : first + size]
        first += size
        excess = max(len(tokens) for tokens, _ in options) - max_tokens
        if excess > 0:
            name = names[i] if names is not None else f"text {i}"
            rows.append(_cut_row(tokenizer, group, excess, options, max_tokens, name))
        else:
            rows.append(_row(group, options, cut=0))
    return rows


def rows_digest(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of rows: equal digests are equal work for the engine."""
    digest = hashlib.sha256()
    for row in rows:
        for array in (
            row.ids,
            row.positions,
            row.end,
            row.read,
            row.target,
            row.option,
            row.lengths,
        ):
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()


Encoded = tuple[list[int], list[tuple[int, int]]]


def _full_texts(group: Sequence[Text]) -> list[str]:
    return [f"{text.prompt} {c}" for text in group for c in text.continuations]


def _encoded(tokenizer: Any, whole: list[str]) -> list[Encoded]:
    """Return tokens and their characters, without special tokens that a tokenizer adds at the end.

    The answer must be followed by none.
    """
    encoded = tokenizer(
        whole, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
    )
    found = []
    for ids, offsets, special in zip(
        encoded["input_ids"],
        encoded["offset_mapping"],
        encoded["special_tokens_mask"],
        strict=True,
    ):
        end = len(ids)
        while end > 1 and special[end - 1] and offsets[end - 1] == (0, 0):
            end -= 1
        found.append((ids[:end], offsets[:end]))
    return found


def _cut_row(
    tokenizer: Any,
    group: Sequence[Text],
    excess: int,
    options: list[Encoded],
    max_tokens: int,
    name: str,
) -> Row:
    """Cut the question from its beginning until the longest continuation fits."""
    start, full = len(group[0].before), group[0].question
    while True:
        _, offsets = max(options, key=lambda option: len(option[0]))
        question = group[0].question
        stop = start + len(question)
        if not question:
            raise InputError(
                f"{name}: prompt, options and answer alone take {excess} tokens more than the "
                f"{max_tokens} allowed, even without the question. Raise max_tokens, or leave the "
                "question out."
            )
        inside = [end for begin, end in offsets if begin >= start and start < end <= stop]
        inside = inside or [stop]
        keep_from = inside[min(excess, len(inside)) - 1] - start
        question = question[keep_from:].lstrip()
        group = [replace(text, question=question) for text in group]
        options = _encoded(tokenizer, _full_texts(group))
        excess = max(len(tokens) for tokens, _ in options) - max_tokens
        if excess <= 0:
            return _row(group, options, cut=len(full) - len(question))


def _row(group: Sequence[Text], options: list[Encoded], cut: int) -> Row:
    texts = [(text, c) for text in group for c in text.continuations]
    scored = []
    for (text, continuation), (_, offsets) in zip(texts, options, strict=True):
        beyond = len(text.prompt)
        first = next((j for j, (_, end) in enumerate(offsets) if end > beyond), len(offsets))
        if first == len(offsets):
            raise InputError(
                f"The option {continuation!r} has no tokens of its own after {text.prompt!r}."
            )
        if first == 0:
            raise InputError(f"The prompt {text.prompt!r} has no tokens before the answer.")
        scored.append(first)
    return token_tree(
        [tokens for tokens, _ in options], scored, [len(c.encode()) for _, c in texts], cut
    )


def token_tree(
    texts: Sequence[Sequence[int]], scored: Sequence[int], lengths: Sequence[int], cut: int = 0
) -> Row:
    """Return the row of several token sequences, each an option.

    Args:
        texts: the tokens of each option's whole text.
        scored: for each option the first token that is scored, at least 1.
        lengths, cut: as in `Row`.
    """
    # Sorted, texts that begin alike are neighbours: each adds what it does not share with the one
    # before. The last token of a text is only predicted, never fed.
    fed = [list(text[:-1]) for text in texts]
    paths: list[list[int]] = [[]] * len(texts)
    ids: list[int] = []
    positions: list[int] = []
    end: list[int] = []
    path: list[int] = []
    for k in sorted(range(len(texts)), key=fed.__getitem__):
        shared = next(
            (j for j, place in enumerate(path) if j == len(fed[k]) or ids[place] != fed[k][j]),
            len(path),
        )
        for place in path[shared:]:
            end[place] = len(ids)
        new = range(len(ids), len(ids) + len(fed[k]) - shared)
        path = paths[k] = [*path[:shared], *new]
        ids += fed[k][shared:]
        positions += range(shared, len(fed[k]))
        end += [0] * len(new)
    for place in path:
        end[place] = len(ids)
    read = [place for k, first in enumerate(scored) for place in paths[k][first - 1 :]]
    target = [token for k, first in enumerate(scored) for token in texts[k][first:]]
    option = [k for k, first in enumerate(scored) for _ in texts[k][first:]]

    def column(values: Sequence[int]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)

    return Row(
        ids=column(ids),
        positions=column(positions),
        end=column(end),
        read=column(read),
        target=column(target),
        option=column(option),
        n_options=len(texts),
        lengths=column(lengths),
        cut=cut,
    )


def cut_note(rows: Sequence[Row], max_tokens: int, model: str) -> list[str]:
    """Say how many rows were cut to fit; nothing where none was."""
    cut = sum(row.cut > 0 for row in rows)
    if not cut:
        return []
    return [
        f"{counted(cut, 'question')} longer than {max_tokens} tokens of {model} lost the beginning."
    ]


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
