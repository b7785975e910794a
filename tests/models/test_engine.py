"""The engine against the plain way: one option, one row, the model's own full logits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lessonplan.models.batch import batches_by_length, common_beginning, tree_mask
from lessonplan.models.engine import (
    Engine,
    PlainWayWarning,
    _rounded_off,
    _target_logprobs,
)
from lessonplan.models.loading import _package_file, load, resolve
from lessonplan.models.presets import PRESETS
from lessonplan.models.rows import Text, question_texts, token_rows
from tests.conftest import ARCHITECTURES

LONG = "Under which category is the disease of Whitmore classified? It is among the best. " * 2
TEXTS = [
    Text("Question: ", "Why?", "\nAnswer:", ["Z", "é ü, and so on"]),
    Text("Question: ", LONG, "\nAnswer:", ["the plague", "one", "among the diseases of A", "ü"]),
    Text("", "Q", "", ["same", "same", "x"]),
    Text("Question: ", "Which is one?", "\nAnswer:", ["one and only"]),
    Text("Question: ", LONG[:60], "\nAnswer:", ["one " * 30, "one " * 29 + "two", "Answer"]),
]


def plain_sums(network, tokenizer, texts: Sequence[Text]) -> list[list[torch.Tensor]]:
    """Log-likelihood of each option by one forward pass each, without masks or padding."""
    found = []
    for text in texts:
        of_text = []
        for option in text.continuations:
            encoded = tokenizer(f"{text.prompt} {option}", return_offsets_mapping=True)
            ids = encoded["input_ids"]
            logprobs = torch.log_softmax(network(torch.tensor([ids])).logits[0].float(), dim=-1)
            scored = [
                logprobs[j - 1, ids[j]]
                for j, (_, end) in enumerate(encoded["offset_mapping"])
                if end > len(text.prompt)
            ]
            of_text.append(torch.stack(scored).sum())
        found.append(of_text)
    return found


def scored_tokens(tokenizer, text: Text, option: str) -> int:
    offsets = tokenizer(f"{text.prompt} {option}", return_offsets_mapping=True)["offset_mapping"]
    return sum(end > len(text.prompt) for _, end in offsets)


def some_loss(sums: Sequence[torch.Tensor]) -> torch.Tensor:
    """An arbitrary function of each question's sums."""
    weights = (0.3, -1.0, 2.0, 0.7, -0.4)
    terms = [s.softmax(-1)[0] + 0.1 * s.sum() for s in sums]
    return torch.stack([w * t for w, t in zip(weights, terms, strict=True)]).sum()


def close(found, expected, tolerance: float = 1e-4) -> None:
    for mine, plain in zip(found, expected, strict=True):
        plain = [float(x) for x in plain]
        np.testing.assert_allclose(np.asarray(mine)[: len(plain)], plain, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def rows(tokenizer):
    return token_rows(tokenizer, TEXTS, max_tokens=500)


def tiny(folder: Path):
    network = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    return network.requires_grad_(False).eval()


def quiet_engine(network, **settings) -> Engine:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlainWayWarning)
        return Engine(network, **settings)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_way_equals_the_plain_way(
    tiny_models: dict[str, Path], tokenizer, rows, kind: str
) -> None:
    network = tiny(tiny_models[kind])
    engine = quiet_engine(network, keep_below=2)
    assert engine.sharing
    assert engine.packing
    assert engine.reading
    assert engine.narrowing
    assert engine.keep_below == 2
    with torch.no_grad():
        expected = plain_sums(network, tokenizer, TEXTS)
    counts = [[scored_tokens(tokenizer, t, c) for c in t.continuations] for t in TEXTS]
    spread = [abs(a - b).item() for a, b in (x[:2] for x in expected if len(x) > 1)]
    assert max(spread) > 1  # options of these weights do differ

    sums, tokens = engine.score(rows)
    close(sums, expected)
    assert [t.tolist() for t in tokens] == counts
    hidden = engine.lower(rows)
    assert hidden is not None
    close(engine.score(rows, hidden)[0], expected)
    with torch.no_grad():
        # Mixed lengths in one batch, padded and end to end, in any order; and each row alone.
        for packing in (True, False):
            engine.packing = packing
            close(engine.option_sums(rows)[0], expected)
            back = list(range(len(rows)))[::-1]
            states = [hidden.row(i) for i in back]
            mixed = engine.option_sums([rows[i] for i in back], states)[0]
            close(mixed, [expected[i] for i in back])
            close(engine.score(rows, engine.lower(rows))[0], expected)
            for i, row in enumerate(rows):
                close(engine.option_sums([row])[0], expected[i : i + 1])
        engine.sharing = False
        close(engine.option_sums(rows)[0], expected)
        engine.reading = False
        close(engine.option_sums(rows)[0], expected)
        engine.sharing = True
        close(engine.option_sums(rows)[0], expected)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3", "gpt_neox"])
def test_gradients_equal_autograds(tiny_models: dict[str, Path], rows, tokenizer, kind) -> None:
    """Through the custom backward pass, the masks and the split, to weights of the upper half."""
    network = tiny(tiny_models[kind])
    engine = quiet_engine(network, keep_below=2)
    top = network.base_model.layers[-1]
    weights = [p for p in top.parameters() if p.dim() > 1]
    for weight in weights:
        weight.requires_grad_(True)
    expected = [torch.stack(s) for s in plain_sums(network, tokenizer, TEXTS)]
    reference = torch.autograd.grad(some_loss(expected), weights)
    hidden = engine.lower(rows)
    for states in (None, [hidden.row(i) for i in range(len(rows))]):
        sums, counts = engine.option_sums(rows, states)
        mine = [s[: n.count_nonzero()] for s, n in zip(sums, counts, strict=True)]
        found = torch.autograd.grad(some_loss(mine), weights)
        for a, b in zip(found, reference, strict=True):
            assert b.abs().max() > 1e-4
            assert (a - b).abs().max() <= 2e-4 * b.abs().max()


def test_target_logprob_is_log_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 11, generator=generator, dtype=torch.float64) * 4
    spot = torch.tensor([0, 0, 3, 1, 4, 0])  # one spot read three times, one not at all
    target = torch.tensor([2, 2, 10, 0, 5, 7])
    upstream = torch.randn(6, generator=generator, dtype=torch.float64)
    found, expected = [], []
    for store, function in (
        (found, _target_logprobs),
        (expected, lambda z, s, t: torch.log_softmax(z, -1)[s, t]),
    ):
        leaf = logits.clone().requires_grad_(True)
        value = function(leaf * 1.0, spot, target)
        (gradient,) = torch.autograd.grad((value * upstream).sum(), leaf)
        store += [value.detach(), gradient]
    torch.testing.assert_close(found[0], expected[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[1], expected[1], atol=1e-12, rtol=0)
    numeric = torch.zeros_like(logits)
    for i, j in np.ndindex(*logits.shape):
        for sign in (1, -1):
            moved = logits.clone()
            moved[i, j] += sign * 1e-6
            value = torch.log_softmax(moved, -1)[spot, target]
            numeric[i, j] += sign * (value * upstream).sum() / 2e-6
    torch.testing.assert_close(found[1], numeric, atol=1e-7, rtol=0)


def test_a_graph_is_walked_once_only() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    value = _target_logprobs(logits * 1.0, torch.tensor([0, 1]), torch.tensor([2, 3])).sum()
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_mask_by_hand() -> None:
    # A row of five tokens (0 1 are shared, 2 3 and 4 are options), a row of two, and padding.
    end = torch.tensor([[5, 5, 4, 4, 5, 7, 7, 0]])
    seen = [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]
    assert tree_mask(end)[0, 0].int().tolist() == seen


def test_padding_and_neighbours_change_nothing(tiny_llama: Path, rows) -> None:
    """Garbage where nobody should look leaves every score's bytes as they were."""
    network = tiny(tiny_llama)
    engine = quiet_engine(network)
    batch = engine._collate(rows)
    row = torch.arange(len(rows))[:, None].expand_as(batch.end).clone()
    row[batch.end == 0] = -1
    for packing in (False, True):
        engine.packing = packing
        attention = engine._attention(batch)
        for k in range(len(rows)):
            # All but the text that ends with the row's last token.
            own = row == k
            other = ~own | (batch.end < batch.end[own].max())
            other[:, : common_beginning(rows)] = False
            found = []
            for ids in (batch.ids, torch.where(other, (batch.ids + 7) % 300, batch.ids)):
                fed = engine._fed(batch, ids)
                with torch.no_grad():
                    found.append(network.base_model(fed, **attention, use_cache=False)[0])
            before, after = found
            kept = ~engine._fed(batch, other)
            assert torch.equal(before[kept], after[kept])
            assert not torch.equal(before[~kept], after[~kept])
        assert attention["attention_mask"].any(-1).all()  # no query without a key


def test_what_options_share_stands_once_and_changes_nothing(tiny_llama: Path, tokenizer) -> None:
    """Options that begin alike, two levels deep, against one plain pass an option."""
    options = ["the disease of A one", "the disease of A two", "the disease is B", "C the disease"]
    text = Text("Question: ", "Which is it?", "\nAnswer:", options)
    (row,) = token_rows(tokenizer, [text], max_tokens=400)
    fed = [len(tokenizer(f"{text.prompt} {option}")["input_ids"]) - 1 for option in options]
    prompt = len(tokenizer(text.prompt)["input_ids"])
    assert len(row) < prompt + sum(fed) - prompt * len(options)
    network = tiny(tiny_llama)
    engine = quiet_engine(network)
    assert engine.sharing
    with torch.no_grad():
        close(engine.score([row])[0], plain_sums(network, tokenizer, [text]))


def test_letters_have_the_models_next_token_probabilities(tiny_llama: Path, tokenizer) -> None:
    questions = {
        "question": ["Why?", "Which of the diseases?"],
        "options": [["x", "y", "z"], ["p", "q"]],
        "answer": [0, 1],
    }
    texts = question_texts(questions, "letter")
    network = tiny(tiny_llama)
    sums, tokens = quiet_engine(network).score(token_rows(tokenizer, texts, max_tokens=400))
    for text, mine, n in zip(texts, sums, tokens, strict=True):
        assert (n == 1).all()
        with torch.no_grad():
            after = network(torch.tensor([tokenizer(text.prompt)["input_ids"]])).logits[0, -1]
        letters = [tokenizer(f"x {x}")["input_ids"][-1] for x in text.continuations]
        np.testing.assert_allclose(mine, after.log_softmax(-1)[letters].numpy(), atol=1e-4)


def test_letters_of_several_tokens_are_continuations(tiny_llama: Path) -> None:
    """A tokenizer of single bytes: " A" is two tokens, and the first is the same for all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(alphabet))}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise = PreTrainedTokenizerFast(tokenizer_object=inner)
    questions = {"question": ["Why?"], "options": [["x", "y", "z"]], "answer": [0]}
    texts = question_texts(questions, "letter")
    rows = token_rows(bytewise, texts, max_tokens=500)
    network = tiny(tiny_llama)
    (sums,), (tokens,) = quiet_engine(network).score(rows)
    assert tokens.tolist() == [2, 2, 2]
    with torch.no_grad():
        close([sums], plain_sums(network, bytewise, texts))
        ids = bytewise(texts[0].prompt + " ")["input_ids"]
        last = network(torch.tensor([ids])).logits[0, -1]
    letters = [bytewise(x)["input_ids"][0] for x in "ABC"]
    probabilities = np.exp(sums - sums.max()) / np.exp(sums - sums.max()).sum()
    np.testing.assert_allclose(probabilities, last[letters].softmax(-1).numpy(), atol=1e-4)


# Networks in which a shortcut does not hold.


def ignores_masks(kwargs: dict) -> dict:
    mask = kwargs.get("attention_mask")
    return {**kwargs, "attention_mask": None if mask is not None and mask.dim() == 4 else mask}


def ignores_positions(kwargs: dict) -> dict:
    return {k: v for k, v in kwargs.items() if k != "position_ids"}


def refuses_masks(kwargs: dict) -> dict:
    if kwargs["attention_mask"].dim() == 4:
        raise NotImplementedError("only 2D masks")
    return kwargs


def one_warning(caught: pytest.WarningsRecorder, words: str) -> None:
    said = [w for w in caught if issubclass(w.category, PlainWayWarning)]
    assert len(said) == 1
    assert words in str(said[0].message)
    assert "LlamaForCausalLM" in str(said[0].message)


@pytest.mark.parametrize("change", [ignores_masks, ignores_positions, refuses_masks])
def test_without_sharing_the_plain_way_is_taken(tiny_llama: Path, tokenizer, rows, change) -> None:
    network = tiny(tiny_llama)
    with torch.no_grad():
        expected = plain_sums(network, tokenizer, TEXTS)
    forward = network.model.forward

    def changed(*args, **kwargs):
        return forward(*args, **change(kwargs))

    network.model.forward = changed
    with pytest.warns(PlainWayWarning) as caught:
        engine = Engine(network, keep_below=2)
    one_warning(caught, "scoring all options in one row")
    assert not engine.sharing
    assert engine.keep_below == 0
    assert engine.lower(rows) is None
    close(engine.score(rows)[0], expected)


def test_without_reading_the_models_own_head_is_used(tiny_llama: Path, tokenizer, rows) -> None:
    network = tiny(tiny_llama)
    forward = network.forward

    def capped(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = 5 * torch.tanh(out.logits / 5)
        return out

    network.forward = capped
    with torch.no_grad():
        expected = plain_sums(network, tokenizer, TEXTS)
    with pytest.warns(PlainWayWarning) as caught:
        engine = Engine(network, keep_below=2)
    one_warning(caught, "projecting only the tokens that are read")
    assert engine.sharing
    assert engine.keep_below == 0
    close(engine.score(rows)[0], expected)


@pytest.mark.parametrize("trouble", ["no layers", "no norm", "lower fails", "lower differs"])
def test_without_splitting_nothing_is_kept(
    tiny_llama: Path, tokenizer, rows, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny(tiny_llama)
    with torch.no_grad():
        expected = plain_sums(network, tokenizer, TEXTS)
    decoder = network.model
    if trouble == "no layers":
        layers = decoder.layers
        decoder.layers = nn.ModuleDict({str(i): layer for i, layer in enumerate(layers)})
        monkeypatch.setattr(type(decoder.layers), "__getitem__", lambda s, i: layers[i])
        monkeypatch.setattr(type(decoder.layers), "__iter__", lambda s: iter(layers))
    elif trouble == "no norm":
        decoder.last_norm = decoder.norm
        monkeypatch.setattr(
            type(decoder), "norm", property(lambda self: lambda x: self.last_norm(x)), raising=False
        )
        del decoder._modules["norm"]
    elif trouble == "lower fails":
        forward = type(decoder).forward

        def needs_all(self, *args, **kwargs):
            if self.config.num_hidden_layers < 4:
                raise ValueError("needs all layers")
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(type(decoder), "forward", needs_all)
    else:
        decoder.register_forward_pre_hook(
            lambda module, args, kwargs: (
                args,
                kwargs
                if "input_ids" in kwargs or args
                else {**kwargs, "inputs_embeds": kwargs["inputs_embeds"] * 1.1},
            ),
            with_kwargs=True,
        )
    with pytest.warns(PlainWayWarning) as caught:
        engine = Engine(network, keep_below=2)
    one_warning(caught, "keeping the output of the lower layers")
    assert engine.sharing
    assert engine.keep_below == 0
    assert engine.lower(rows) is None
    close(engine.score(rows)[0], expected)


def test_attention_in_chunks_is_noticed(tokenizer, rows) -> None:
    """Llama 4 counts its chunks in rows of the batch, which branches shift."""
    import transformers

    config = transformers.Llama4TextConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=48,
        intermediate_size_mlp=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        attention_chunk_size=24,
    )
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
        expected = plain_sums(network, tokenizer, TEXTS)
    with pytest.warns(PlainWayWarning):
        engine = Engine(network)
    close(engine.score(rows)[0], expected)


def test_letters_in_bfloat16_do_not_tie(tiny_llama: Path, tokenizer) -> None:
    """Rounded logits would often be alike, and the first letter chosen."""
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    network = network.requires_grad_(False).eval()
    letters = ["A", "B", "C", "D"]
    texts = [Text("", f"Which is number {i}?", "", letters) for i in range(20)]
    rows = token_rows(tokenizer, texts, max_tokens=99)
    ids = rows[0].target[-4:]
    assert len(set(ids.tolist())) == 4
    # Letters that a model finds nearly alike: logits of about 10, and a little of each one's own.
    state = network.model(torch.from_numpy(rows[0].ids)[None]).last_hidden_state[0, -1].float()
    own = torch.randn((4, len(state)), generator=torch.Generator().manual_seed(0))
    near = 10 * state / state.square().sum() + own / 200
    network.lm_head.weight[torch.from_numpy(ids)] = near.to(torch.bfloat16)
    rounded = 0
    for row in rows:
        prompt = torch.from_numpy(row.ids[: row.read[-1] + 1])[None]
        logits = network(prompt).logits[0, -1][torch.from_numpy(ids)]
        rounded += len(set(logits.tolist())) < 4
    assert rounded > 3
    engine = Engine(network)
    assert engine.reading
    for found in engine.score(rows)[0]:
        assert len(set(found.tolist())) == 4


def test_what_a_half_precision_head_rounds_off() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 500).to(torch.bfloat16)
    states = 20 * torch.randn(7, 64).to(torch.bfloat16)
    spot, target = torch.randint(7, (40,)), torch.randint(500, (40,))
    logits = head(states)
    found = logits[spot, target].float() + _rounded_off(head, states, logits, spot, target)
    exact = torch.nn.functional.linear(states.double(), head.weight.double(), head.bias.double())
    torch.testing.assert_close(found.double(), exact[spot, target], atol=1e-4, rtol=1e-5)
    assert (logits[spot, target].double() - exact[spot, target]).abs().max() > 1e-2


# Keeping the lower layers' output.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_in_a_file_are_those_in_memory(
    tiny_llama: Path, rows, tmp_path: Path, dtype: torch.dtype
) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype)
    engine = Engine(network.requires_grad_(False).eval(), keep_below=3)
    assert engine.keep_below == 3
    memory = engine.lower(rows)
    file = tmp_path / "states"
    mapped = engine.lower(rows, file)
    assert memory is not None
    assert mapped is not None
    assert memory.states.dtype == mapped.states.dtype == dtype
    assert torch.equal(memory.states, mapped.states)
    assert file.read_bytes() == memory.states.contiguous().view(torch.uint8).numpy().tobytes()
    assert sorted(p.name for p in tmp_path.iterdir() if "cache" not in p.name) == [
        "states",
        "states.lock",
    ]
    for a, b in zip(engine.score(rows, memory)[0], engine.score(rows, mapped)[0], strict=True):
        assert a.tobytes() == b.tobytes()
    mapped.states[:] = 0  # a private copy: what the file holds stays
    again = engine.lower(rows, file)
    assert again is not None
    assert torch.equal(again.states, memory.states)


def test_an_existing_file_is_read_not_made(tiny_llama: Path, rows, tmp_path: Path) -> None:
    engine = quiet_engine(tiny(tiny_llama), keep_below=2)
    file = tmp_path / "states"
    engine.lower(rows, file)
    made = file.stat().st_mtime_ns

    def fail(*args):
        raise AssertionError("computed again")

    engine._fill = fail
    assert engine.lower(rows, file) is not None
    assert file.stat().st_mtime_ns == made


def test_part_of_the_rows(tiny_llama: Path, rows) -> None:
    engine = quiet_engine(tiny(tiny_llama), keep_below=2)
    sums, tokens = engine.score(rows)
    part = np.array([3, 0, 4])
    for hidden in (None, engine.lower(rows)):
        some, some_tokens = engine.score(rows, hidden, part)
        close(some, [sums[i] for i in part])
        assert [t.tolist() for t in some_tokens] == [tokens[i].tolist() for i in part]


def test_all_layers_can_be_kept(tiny_llama: Path, rows) -> None:
    engine = quiet_engine(tiny(tiny_llama), keep_below=9)
    assert engine.keep_below == 4
    close(engine.score(rows, engine.lower(rows))[0], engine.score(rows)[0])


def test_the_network_is_left_as_it_was(tiny_llama: Path) -> None:
    network = tiny(tiny_llama)
    before = (repr(network), network.config.to_json_string(), len(network.model.layers))
    quiet_engine(network, keep_below=2)
    assert (repr(network), network.config.to_json_string(), len(network.model.layers)) == before


def test_no_rows(tiny_llama: Path) -> None:
    engine = quiet_engine(tiny(tiny_llama), keep_below=2)
    assert engine.lower([]) is None
    assert engine.score([]) == ([], [])


def test_batches_hold_every_row_once_longest_first(rows) -> None:
    many = [*rows, *rows, *rows, *rows]
    batches = list(batches_by_length(many, 6))
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(len(many)))
    lengths = [len(many[i]) for i in flat]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(b) for b in batches] == [6, 6, 6, 2]


def test_the_longest_probe_fits_a_short_context(tmp_path: Path, tiny_llama: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_llama)
    config.max_position_embeddings = 20
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    assert quiet_engine(network, keep_below=1).keep_below == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "layers", "kept", "right"),
    [("smollm2-135m", 30, 22, [1, 0]), ("gemma3-270m", 18, 14, [1, 0])],
)
def test_real_models_are_converted_once_and_scored_exactly(
    preset: str, layers: int, kept: int, right: list[int]
) -> None:
    parts = PRESETS[preset].parts
    if not all(_package_file(package, file) for package, file in parts):
        pytest.skip(f"needs the package of {preset}: {PRESETS[preset].install}")
    folder = resolve(preset)
    weights = next(folder.glob("*.safetensors"))
    made = weights.stat().st_mtime_ns
    model = load(preset)
    assert resolve(preset) == folder
    assert weights.stat().st_mtime_ns == made
    assert not any(p.requires_grad for p in model.network.parameters())
    # Texts of 600 tokens outgrow the window of 512 that Gemma 3 has in most of its layers.
    engine = quiet_engine(model.network, keep_below=kept, longest=700)
    assert engine.n_layers == layers
    assert engine.keep_below == kept
    assert engine.packing
    assert engine.narrowing
    france = ["London", "Paris", "Buenos Aires", "Rome"]
    texts = [
        Text("Question: ", "What is the capital of France?", "\nAnswer:", france),
        Text("Question: ", "Which organ pumps blood?", "\nAnswer:", ["The heart", "The liver"]),
        Text("", "Paris is a city. " * 120, "\nThe capital of France is", france[:2]),
    ]
    rows = token_rows(model.tokenizer, texts, max_tokens=700)
    assert len(rows[-1]) > 600
    with torch.no_grad():
        expected = plain_sums(model.network, model.tokenizer, texts)
    scores = engine.score(rows)[0]
    close(scores, expected, 5e-4)
    close(engine.score(rows, engine.lower(rows))[0], expected, 5e-4)
    assert [int(np.argmax(s)) for s in scores[:2]] == right
