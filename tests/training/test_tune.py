"""Fine-tuning against a plain loop: PEFT's LoRA, torch's AdamW, one padded-free row an option."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lessonplan.errors import InputError
from lessonplan.models.engine import Engine
from lessonplan.models.lora import add_adapter
from lessonplan.models.rows import Text, token_rows
from lessonplan.training.recipe import Recipe
from lessonplan.training.schedule import learning_rates
from lessonplan.training.tune import TuningError, TuningLog, tune

WORDS = [
    "the",
    "disease",
    "of",
    "category",
    "among",
    "one",
    "Whitmore",
    "plague",
    "is",
    "classified",
    "under",
    "which",
    "A",
    "B",
]


def make_texts(n: int) -> tuple[list[Text], np.ndarray]:
    rng = np.random.default_rng(5)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(low, high)))

    texts = [
        Text("Question: ", words(1, 12), "?\nAnswer:", [words(1, 5) for _ in range(2 + i % 3)])
        for i in range(n)
    ]
    return texts, np.array([int(rng.integers(len(t.continuations))) for t in texts])


TEXTS, ANSWERS = make_texts(11)
ALONE = [
    Text(t.before, t.question, t.after, [t.continuations[a]])
    for t, a in zip(TEXTS, ANSWERS, strict=True)
]
ORDER = np.array([4, 0, 10, 2, 2, 9, 1, 8, 3, 7, 6, 5, 0], dtype=np.int64)


class Setup:
    """A tiny network with an adapter, its engine, and the rows of both losses."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.network.requires_grad_(False).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        layers = None if recipe.adapter.layers == "all" else recipe.adapter.layers
        self.adapter = add_adapter(
            self.network,
            rank=recipe.adapter.rank,
            alpha=recipe.adapter.alpha,
            dropout=recipe.adapter.dropout,
            layers=layers,
        )
        self.engine = Engine(self.network, keep_below=0 if layers is None else 4 - layers)
        self.recipe = recipe
        texts = TEXTS if recipe.loss == "choice" else ALONE
        self.rows = token_rows(self.tokenizer, texts, max_tokens=200)
        self.scoring = token_rows(self.tokenizer, TEXTS, max_tokens=200)

    def tune(self, order: np.ndarray = ORDER, **settings) -> TuningLog:
        return tune(
            self.engine,
            self.adapter,
            self.rows,
            order,
            self.recipe,
            **{
                "seed": 0,
                "hidden": self.engine.lower(self.rows),
                "answers": ANSWERS,
                **settings,
            },
        )

    def weights(self) -> bytes:
        return b"".join(p.detach().numpy().tobytes() for p in self.adapter.parameters)


def recipe(**settings) -> Recipe:
    adapter = {"rank": 4, "alpha": 8, **settings.pop("adapter", {})}
    return Recipe.model_validate(
        {"adapter": adapter, "batch_size": 4, "learning_rate": 5e-3, **settings}
    )


def plain_losses(
    folder: Path, of: Recipe, start: Path, score: str = "per_token", order: Sequence[int] = ORDER
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the loss of every step and the last weights, in the plainest way there is."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(network, start, is_trainable=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=of.learning_rate, weight_decay=of.weight_decay, betas=(0.9, 0.999), eps=1e-8
    )
    rates = learning_rates(of, math.ceil(len(order) / of.step_size))

    def option(text: Text, words: str) -> tuple[torch.Tensor, int]:
        encoded = tokenizer(f"{text.prompt} {words}", return_offsets_mapping=True)
        ids = encoded["input_ids"]
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        scored = [j for j, (_, e) in enumerate(encoded["offset_mapping"]) if e > len(text.prompt)]
        return torch.stack([logprobs[j - 1, ids[j]] for j in scored]).sum(), len(scored)

    def question_loss(i: int) -> tuple[torch.Tensor, int]:
        if of.loss == "answer":
            total, n = option(TEXTS[i], TEXTS[i].continuations[ANSWERS[i]])
            return -total / n, n
        scores = []
        for words in TEXTS[i].continuations:
            total, n = option(TEXTS[i], words)
            length = {"sum": 1, "per_token": n, "per_byte": len(words.encode())}[score]
            scores.append(total / length)
        return torch.logsumexp(torch.stack(scores), 0) - scores[ANSWERS[i]], 1

    losses = []
    for step, rate in enumerate(rates):
        shown = order[step * of.step_size : (step + 1) * of.step_size]
        terms = [question_loss(int(i)) for i in shown]
        if of.weight == "token":
            loss = sum(term * n for term, n in terms) / sum(n for _, n in terms)
        else:
            loss = sum(term for term, _ in terms) / of.step_size
        losses.append(sum(term.item() for term, _ in terms) / len(terms))
        optimizer.zero_grad()
        loss.backward()
        if of.max_grad_norm:
            norm = torch.sqrt(sum(p.grad.square().sum() for p in trained))
            for parameter in trained:
                parameter.grad *= min(1.0, of.max_grad_norm / (norm.item() + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    state = {
        name.replace(".default", ""): p.detach()
        for name, p in model.named_parameters()
        if "lora_" in name
    }
    return losses, state


CASES = {
    "answer": {},
    "answer, top layers": {"adapter": {"layers": 2}},
    "choice": {"loss": "choice"},
    "choice, top layers": {"loss": "choice", "adapter": {"layers": 2}},
    "token weights": {"weight": "token", "schedule": "cosine", "warmup": 0.3},
    "accumulated": {"loss": "choice", "batch_size": 2, "accumulation": 3, "weight_decay": 0.1},
    "unclipped": {"max_grad_norm": 0, "schedule": "constant", "adapter": {"layers": 1}},
    "clipped hard": {"max_grad_norm": 0.01, "schedule": "wsd"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_plain_loop_gives_the_same(
    tiny_models: dict[str, Path], tmp_path: Path, kind: str, case: str
) -> None:
    compare_with_plain_loop(tiny_models[kind], tmp_path, recipe(**CASES[case]), "per_token")


@pytest.mark.parametrize("score", ["sum", "per_byte"])
def test_a_plain_loop_gives_the_same_for_other_scores(
    tiny_llama: Path, tmp_path: Path, score: str
) -> None:
    compare_with_plain_loop(tiny_llama, tmp_path, recipe(loss="choice"), score)


def compare_with_plain_loop(folder: Path, scratch: Path, of: Recipe, score: str) -> None:
    setup = Setup(folder, of)
    setup.adapter.reset(0)
    setup.adapter.save(scratch / "start", "m")
    log = setup.tune(score=score)
    expected, state = plain_losses(folder, of, scratch / "start", score)
    assert log.losses.shape == (math.ceil(13 / of.step_size),)
    np.testing.assert_allclose(log.losses, expected, atol=1e-4, rtol=0)
    assert len(state) == 2 * len(setup.adapter.modules)
    moved = 0.0
    for name, module in setup.adapter.modules.items():
        for part, key in ((module.a, "lora_A"), (module.b, "lora_B")):
            theirs = state[f"base_model.model.{name}.{key}.weight"]
            torch.testing.assert_close(part.detach(), theirs, atol=5e-4, rtol=0)
            moved = max(moved, float(theirs.abs().max()) if key == "lora_B" else 0.0)
    assert moved > 5e-3  # training did something, by far more than the tolerance


def test_exactly_the_given_order(tiny_llama: Path) -> None:
    setup = Setup(tiny_llama, recipe(loss="choice", batch_size=3, accumulation=2))
    seen: list[list[int]] = []
    inner = setup.engine.option_sums

    def spy(rows, *rest):
        seen.append([next(i for i, row in enumerate(setup.rows) if row is r) for r in rows])
        return inner(rows, *rest)

    setup.engine.option_sums = spy
    steps: list[int] = []
    log = setup.tune(on_step=steps.append)
    assert seen == [[4, 0, 10], [2, 2, 9], [1, 8, 3], [7, 6, 5], [0]]
    assert steps == [6, 12, 13]
    assert len(log.losses) == len(log.learning_rates) == 3


@pytest.mark.parametrize("n", [1, 3, 4, 5, 13])
def test_every_question_weighs_the_same_also_in_the_last_step(tiny_llama: Path, n: int) -> None:
    """The gradient of a step is that of the sum of its questions' losses over the step size."""
    of = recipe(max_grad_norm=0)
    setup = Setup(tiny_llama, of)
    gradients: list[torch.Tensor] = []
    losses: list[float] = []
    step = torch.optim.AdamW.step

    def record(self, *args, **kwargs):
        gradients.append(torch.cat([p.grad.flatten() for p in setup.adapter.parameters]))
        for group in self.param_groups:
            group["lr"] = 0.0  # the weights stay, so that each step can be done again
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", record)
        losses = list(setup.tune(ORDER[:n]).losses)
    setup.adapter.reset(0)
    for s, gradient in enumerate(gradients):
        shown = ORDER[s * 4 : min(n, (s + 1) * 4)]
        expected = torch.zeros_like(gradient)
        of_step = []
        for i in shown:
            sums, tokens = setup.engine.option_sums([setup.rows[i]])
            loss = -sums[0, 0] / tokens[0, 0]
            of_step.append(loss.item())
            parts = torch.autograd.grad(loss, setup.adapter.parameters)
            expected += torch.cat([p.flatten() for p in parts]) / 4
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
        assert losses[s] == pytest.approx(np.mean(of_step), abs=1e-5)
    assert len(gradients) == math.ceil(n / 4)


@pytest.mark.parametrize(
    ("loss", "weight"), [("answer", "question"), ("answer", "token"), ("choice", "question")]
)
def test_accumulation_equals_the_bigger_batch(tiny_llama: Path, loss: str, weight: str) -> None:
    found = []
    for batch, accumulation in ((6, 1), (2, 3), (1, 6), (4, 2)):
        settings = {"loss": loss, "weight": weight, "schedule": "constant"}
        setup = Setup(tiny_llama, recipe(batch_size=batch, accumulation=accumulation, **settings))
        order = ORDER[:6] if batch == 4 else ORDER
        log = setup.tune(order)
        found.append((log.losses, [p.detach().clone() for p in setup.adapter.parameters]))
    (losses, weights), *others, partial = found
    for other, these in others:
        np.testing.assert_allclose(other, losses, atol=1e-5)
        for a, b in zip(weights, these, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert partial[0][0] == pytest.approx(losses[0], abs=1e-5)


def test_training_learns(tiny_llama: Path) -> None:
    of = recipe(loss="choice", schedule="constant", learning_rate=1e-2)
    setup = Setup(tiny_llama, of)
    log = setup.tune(np.tile(np.arange(11), 12))
    assert log.losses[-3:].mean() < 0.5 * log.losses[:3].mean()


def test_two_runs_are_equal_to_the_byte(tiny_llama: Path, tmp_path: Path) -> None:
    of = recipe(loss="choice", adapter={"dropout": 0.2, "layers": 2})
    for folder, scramble in (("one", 1), ("two", 2)):
        torch.manual_seed(scramble)  # nothing of the caller's random state enters
        setup = Setup(tiny_llama, of)
        if scramble == 2:  # nor what the adapter did before
            setup.tune(seed=9)
        setup.tune(seed=3)
        setup.adapter.save(tmp_path / folder, "m")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_seeds_and_orders_differ(tiny_llama: Path) -> None:
    setup = Setup(tiny_llama, recipe())
    found = set()
    for seed, order in ((0, ORDER), (1, ORDER), (0, ORDER[::-1].copy())):
        setup.tune(order, seed=seed)
        found.add(setup.weights())
    assert len(found) == 3


def test_dropout_has_a_stream_of_its_own(tiny_llama: Path) -> None:
    setup = Setup(tiny_llama, recipe(adapter={"dropout": 0.3}))
    torch.manual_seed(77)
    state = torch.get_rng_state()
    first = setup.tune().losses
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    np.testing.assert_array_equal(setup.tune().losses, first)
    without = Setup(tiny_llama, recipe()).tune().losses
    assert not np.allclose(first[1:], without[1:], atol=1e-4)


@pytest.mark.parametrize("layers", ["all", 2])
def test_evaluation_on_the_way_changes_nothing(tiny_llama: Path, layers) -> None:
    setup = Setup(tiny_llama, recipe(loss="choice", adapter={"dropout": 0.2, "layers": layers}))
    log = setup.tune()
    expected, final = setup.weights(), setup.engine.score(setup.scoring)[0]
    called: list[int] = []
    scores = []

    def checkpoint(seen: int) -> None:
        called.append(seen)
        scores.append(setup.engine.score(setup.scoring, setup.engine.lower(setup.scoring))[0])
        again = setup.engine.score(setup.scoring, setup.engine.lower(setup.scoring))[0]
        for a, b in zip(scores[-1], again, strict=True):
            assert a.tobytes() == b.tobytes()  # dropout is off

    with_checkpoints = setup.tune(checkpoints=[5, 3, 13, 8, 13, 99], on_checkpoint=checkpoint)
    assert called == [4, 8, 13]  # after the step that reaches each; never twice
    assert setup.weights() == expected
    np.testing.assert_array_equal(with_checkpoints.losses, log.losses)
    for a, b in zip(scores[-1], final, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.allclose(scores[0][0], scores[1][0], atol=1e-4)


def poison(setup: Setup, at: int) -> None:
    """Make the loss of the batch with number `at` not a number."""
    inner = setup.engine.option_sums
    batches = 0

    def poisoned(*given):
        nonlocal batches
        batches += 1
        sums, tokens = inner(*given)
        return (sums * torch.nan if batches == at else sums), tokens

    setup.engine.option_sums = poisoned


def test_a_loss_that_is_no_number_ends_it(tiny_llama: Path) -> None:
    setup = Setup(tiny_llama, recipe(adapter={"dropout": 0.5}))
    expected = Setup(tiny_llama, setup.recipe).tune().losses
    inner = setup.engine.option_sums
    poison(setup, 2)
    with pytest.raises(TuningError, match=r"became nan at step 2 of 4 \(question 5 of 13\)"):
        setup.tune()
    setup.engine.option_sums = inner
    # Dropout is off again, and the next tuning with the same adapter starts afresh.
    first, second = (setup.engine.score(setup.scoring)[0] for _ in range(2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
    np.testing.assert_array_equal(setup.tune().losses, expected)


def test_weights_that_are_no_numbers_at_the_end(tiny_llama: Path) -> None:
    setup = Setup(tiny_llama, recipe())

    def spoil(seen: int) -> None:
        if seen == 13:
            with torch.no_grad():
                setup.adapter.parameters[0][0] = torch.nan

    with pytest.raises(TuningError, match="after step 4, the last"):
        setup.tune(on_step=spoil)


def test_a_rate_that_is_far_too_high(tiny_llama: Path) -> None:
    setup = Setup(tiny_llama, recipe(learning_rate=1e30, max_grad_norm=0, schedule="constant"))
    with pytest.raises(TuningError, match="A lower learning_rate usually helps"):
        setup.tune()


def test_choice_needs_answers_and_a_score_it_can_use(tiny_llama: Path) -> None:
    setup = Setup(tiny_llama, recipe(loss="choice"))
    with pytest.raises(InputError, match="index of each right option"):
        setup.tune(answers=None)
    with pytest.raises(InputError, match="unconditional"):
        setup.tune(score="unconditional")


def test_an_empty_order(tiny_llama: Path) -> None:
    setup = Setup(tiny_llama, recipe())
    log = setup.tune(np.array([], dtype=np.int64))
    assert len(log.losses) == len(log.learning_rates) == 0


def test_epochs_are_one_long_order(tiny_llama: Path, tmp_path: Path) -> None:
    of = recipe(loss="choice", batch_size=4, schedule="linear")
    setup = Setup(tiny_llama, of)
    order = np.concatenate([np.arange(11), np.arange(11)[::-1]])
    setup.adapter.reset(0)
    setup.adapter.save(tmp_path, "m")
    expected, _ = plain_losses(tiny_llama, of, tmp_path, order=order.tolist())
    np.testing.assert_allclose(setup.tune(order).losses, expected, atol=1e-4)
