"""Prompts with their completions as tokens: in the model's own chat template, or as they stand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lessonplan.data.features import TURNS
from lessonplan.errors import InputError, first_line

Turn = dict[str, str]
# Stands before templates that write today's date, so that a study has the same tokens tomorrow.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


@dataclass(frozen=True)
class CompletionTokens:
    """A prompt and its completion as tokens.

    Attributes:
        ids: tokens of both.
        first: the first token of the completion, at least 1.
        cut: characters cut from the prompt to fit.
    """

    ids: list[int]
    first: int
    cut: int = 0


def completion_tokens(
    tokenizer: Any, questions: Any, *, max_tokens: int, names: Sequence[str]
) -> list[CompletionTokens]:
    """Return the tokens of every prompt with its completion, encoded as one string.

    A conversation is written by the model's chat template; its completion is what the template adds
    to the prompt for a reply, the mark of the turn's end included. A plain prompt and completion
    are joined as they are, and the tokenizer's end-of-sequence token follows. The completion's
    tokens are those whose characters end beyond the prompt.

    What is longer than `max_tokens` loses its beginning, never its completion: of a conversation
    the oldest turns, up to a user's turn (the system's turn stays), then the beginning of the last
    user's turn; of a plain text the beginning of the prompt.

    Args:
        tokenizer: a fast tokenizer.
        questions: with one option each; conversations have the column ``turns``.
        max_tokens: the most tokens that prompt and completion may have together.
        names: what to call each question in an error.

    Raises:
        InputError: the tokenizer has no chat template, or its template cannot write a conversation;
            a completion is too long even without its prompt. Names the question.
    """
    completions = [options[0] for options in questions["options"]]
    chat = TURNS in questions.column_names
    if chat and not tokenizer.chat_template:
        raise InputError(
            "These are conversations, and the model's tokenizer has no chat template to write them "
            "with. Take a model that was tuned for chat, put a chat_template.jinja into the "
            "model's folder, or give texts in the columns prompt and completion."
        )
    if chat:
        prompts = [json.loads(turns) for turns in questions[TURNS]]
        texts = [
            _written(tokenizer, turns, completion, name)
            for turns, completion, name in zip(prompts, completions, names, strict=True)
        ]
    else:
        prompts = questions["question"]
        texts = [
            _joined(tokenizer, prompt, completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    # A chat template writes the special tokens itself.
    found = _encoded(tokenizer, texts, special=not chat)
    for i, encoded in enumerate(found):
        if len(encoded.ids) > max_tokens:
            cut = _cut_conversation if chat else _cut_text
            found[i] = cut(tokenizer, prompts[i], completions[i], max_tokens, names[i])
        if found[i].first == 0:
            raise InputError(f"{names[i]}: the prompt has no tokens before the completion.")
        if found[i].first == len(found[i].ids):
            raise InputError(f"{names[i]}: the completion has no tokens of its own.")
    return found


def _written(tokenizer: Any, turns: list[Turn], completion: str, name: str) -> tuple[str, str]:
    """Return a conversation up to its completion, and with it, as the template writes them."""
    import jinja2

    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = FIXED_DATE + template
        settings = {"chat_template": template, "tokenize": False}
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, **settings)
        reply = {"role": "assistant", "content": completion}
        whole = tokenizer.apply_chat_template([*turns, reply], **settings)
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise InputError(
            f"{name}: the model's chat template cannot write this conversation: {first_line(error)}"
        ) from None
    if not whole.startswith(prompt):
        raise InputError(
            f"{name}: the model's chat template writes the turns before the completion otherwise "
            "when the completion follows, so its tokens cannot be told from the prompt's. Give "
            "texts in the columns prompt and completion."
        )
    return prompt, whole


def _joined(tokenizer: Any, prompt: str, completion: str) -> tuple[str, str]:
    return prompt, prompt + completion + (tokenizer.eos_token or "")


def _encoded(
    tokenizer: Any, texts: Sequence[tuple[str, str]], *, special: bool
) -> list[CompletionTokens]:
    """Return the tokens of (prompt, prompt with completion).

    Args:
        special: put the tokenizer's special tokens before the text.
    """
    encoded = tokenizer(
        [whole for _, whole in texts],
        add_special_tokens=special,
        return_offsets_mapping=True,
        verbose=False,
    )
    found = []
    for (prompt, _), ids, offsets in zip(
        texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        # What a tokenizer adds at the end stands for no characters.
        end = max((j + 1 for j, (_, stop) in enumerate(offsets) if stop), default=0)
        first = next((j for j in range(end) if offsets[j][1] > len(prompt)), end)
        found.append(CompletionTokens(ids[:end], first))
    return found


def _cut_conversation(
    tokenizer: Any, turns: list[Turn], completion: str, max_tokens: int, name: str
) -> CompletionTokens:
    system = [turn for turn in turns if turn["role"] == "system"]
    rest = turns[len(system) :]

    def tokens(kept: list[Turn]) -> CompletionTokens:
        text = _written(tokenizer, system + kept, completion, name)
        return _encoded(tokenizer, [text], special=False)[0]

    starts = [i for i, turn in enumerate(rest) if turn["role"] == "user"]
    tails = [rest[start:] for start in starts[1:]]
    kept = next((tail for tail in tails if len(tokens(tail).ids) <= max_tokens), None)
    if kept is None:
        user, *after = rest[starts[-1] :]

        def shortened(content: str) -> list[Turn]:
            return [{**user, "content": content}, *after]

        content = _shortened(
            tokenizer, user["content"], lambda c: tokens(shortened(c)), max_tokens, name
        )
        kept = shortened(content)
    found = tokens(kept)
    cut = sum(len(turn["content"]) for turn in rest) - sum(len(turn["content"]) for turn in kept)
    return CompletionTokens(found.ids, found.first, cut)


def _cut_text(
    tokenizer: Any, prompt: str, completion: str, max_tokens: int, name: str
) -> CompletionTokens:
    def tokens(text: str) -> CompletionTokens:
        return _encoded(tokenizer, [_joined(tokenizer, text, completion)], special=True)[0]

    kept = _shortened(tokenizer, prompt, tokens, max_tokens, name)
    found = tokens(kept)
    return CompletionTokens(found.ids, found.first, len(prompt) - len(kept))


def _shortened(
    tokenizer: Any,
    text: str,
    tokens: Callable[[str], CompletionTokens],
    max_tokens: int,
    name: str,
) -> str:
    """Cut a text at its beginning until what `tokens` makes of it fits."""
    while (excess := len(tokens(text).ids) - max_tokens) > 0:
        if not text:
            raise InputError(
                f"{name}: the completion, with what has to stand before it, takes {excess} tokens "
                f"more than the {max_tokens} allowed. Raise max_tokens, or leave the row out."
            )
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in offsets["offset_mapping"]] or [len(text)]
        text = text[max(1, ends[min(excess, len(ends)) - 1]) :]
    return text
