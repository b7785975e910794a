"""Our LoRA modules against PEFT's, in memory and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from lessonplan.errors import InputError
from lessonplan.models.lora import (
    Adapter,
    LoraLinear,
    add_adapter,
    load_adapter,
    load_weights,
    remove_adapter,
)
from tests.conftest import ARCHITECTURES

IDS = torch.tensor([[1, 5, 9, 200, 44, 7, 3, 18], [1, 9, 9, 9, 31, 100, 2, 3]])


def tiny(folder: Path):
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return network.requires_grad_(False).eval()


def randomise(adapter: Adapter, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in adapter.modules.values():
            for part in (module.a, module.b):
                part.copy_(0.2 * torch.randn(part.shape, generator=generator))


@torch.no_grad()
def logits(network) -> torch.Tensor:
    return network(IDS).logits


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_equal_pefts(dropout: float, bias: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, 20, bias=bias).requires_grad_(False)
    mine = LoraLinear(base, rank=4, alpha=12, dropout=dropout)
    config = peft.LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout)
    theirs = PeftLinear(base, "default", config=config, r=4, lora_alpha=12)
    with torch.no_grad():
        for ours, other in (
            (mine.a, theirs.lora_A["default"].weight),
            (mine.b, theirs.lora_B["default"].weight),
        ):
            ours.copy_(torch.randn(ours.shape))
            other.copy_(ours)
    x = torch.randn(3, 7, 12)
    upstream = torch.randn(3, 7, 20)
    results = []
    for module, parameters in (
        (mine, (mine.a, mine.b)),
        (theirs, (theirs.lora_A["default"].weight, theirs.lora_B["default"].weight)),
    ):
        torch.manual_seed(11)
        leaf = x.clone().requires_grad_(True)
        out = module(leaf)
        results.append([out, *torch.autograd.grad((out * upstream).sum(), (leaf, *parameters))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
    if dropout:
        torch.testing.assert_close(mine.eval()(x), theirs.eval()(x), atol=2e-5, rtol=1e-5)
        assert not torch.allclose(mine.train()(x), mine.eval()(x))


def test_half_precision_base_keeps_its_type() -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, 20).to(torch.bfloat16).requires_grad_(False)
    module = LoraLinear(base, 4, 8, 0.0)
    with torch.no_grad():
        module.a.normal_()
        module.b.normal_()
    x = torch.randn(2, 3, 12).to(torch.bfloat16)
    out = module(x)
    assert out.dtype == torch.bfloat16
    exact = x.float() @ base.weight.float().t() + base.bias.float()
    exact = exact + 2 * (x.float() @ module.a.t()) @ module.b.t()
    torch.testing.assert_close(out.float(), exact, atol=0.3, rtol=0.02)


@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_peft_reads_what_we_save(
    tiny_models: dict[str, Path], tmp_path: Path, kind: str, layers: int | None
) -> None:
    network = tiny(tiny_models[kind])
    before = logits(network)
    adapter = add_adapter(network, rank=4, alpha=6, dropout=0.1, layers=layers)
    assert torch.equal(logits(network), before)  # B starts at zero, and dropout is off
    randomise(adapter)
    mine = logits(network)
    assert (mine - before).abs().max() > 0.1
    adapter.save(tmp_path / "adapter", "some/model")
    theirs = peft.PeftModel.from_pretrained(tiny(tiny_models[kind]), tmp_path / "adapter")
    torch.testing.assert_close(logits(theirs.eval()), mine, atol=2e-4, rtol=1e-4)
    wrapped = {
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, PeftLinear)
    }
    assert wrapped == set(adapter.modules)
    again = tiny(tiny_models[kind])
    read = load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again), mine)
    read.save(tmp_path / "again", "some/model")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        first, second = (tmp_path / folder / name for folder in ("adapter", "again"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_we_read_what_peft_saves(tiny_llama: Path, tmp_path: Path, targets) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=10, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.2
    )
    theirs = peft.get_peft_model(tiny(tiny_llama), config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    expected = logits(theirs)
    theirs.save_pretrained(tmp_path)
    network = tiny(tiny_llama)
    adapter = load_adapter(network, tmp_path)
    assert len(adapter.modules) == 4 * (7 if targets == "all-linear" else 2)
    torch.testing.assert_close(logits(network), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("layers", [1, 3, 4, 9, None])
def test_the_top_layers_are_wrapped_and_no_others(tiny_llama: Path, layers: int | None) -> None:
    network = tiny(tiny_llama)
    adapter = add_adapter(network, rank=2, alpha=2, dropout=0.0, layers=layers)
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    for i, layer in enumerate(network.model.layers):
        tuned = layers is None or i >= 4 - layers
        for name in names:
            module = next(m for n, m in layer.named_modules() if n.endswith(name))
            assert isinstance(module, LoraLinear if tuned else nn.Linear)
    assert len(adapter.modules) == 7 * min(4, layers or 4)
    assert isinstance(network.lm_head, nn.Linear)
    assert len(adapter.parameters) == 2 * len(adapter.modules)


def test_removal_restores(tiny_llama: Path) -> None:
    network = tiny(tiny_llama)
    before, names = logits(network), [n for n, _ in network.named_parameters()]
    adapter = add_adapter(network, rank=2, alpha=2, dropout=0.0)
    randomise(adapter)
    assert not torch.equal(logits(network), before)
    remove_adapter(network, adapter)
    assert torch.equal(logits(network), before)
    assert [n for n, _ in network.named_parameters()] == names


def test_zero_answers_as_if_without_adapter_even_after_nan(tiny_llama: Path) -> None:
    network = tiny(tiny_llama)
    before = logits(network)
    adapter = add_adapter(network, rank=2, alpha=2, dropout=0.0)
    with torch.no_grad():
        for part in adapter.parameters:
            part.fill_(torch.nan)
    adapter.zero()
    assert torch.equal(logits(network), before)


def test_reset_is_pefts_start_and_follows_the_seed(tiny_llama: Path) -> None:
    adapter = add_adapter(tiny(tiny_llama), rank=8, alpha=2, dropout=0.0)
    drawn = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed + 50)  # the caller's random state does not enter
        state = torch.get_rng_state()
        adapter.reset(seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(torch.cat([m.a.detach().flatten() for m in adapter.modules.values()]))
        for module in adapter.modules.values():
            reference = nn.init.kaiming_uniform_(torch.empty_like(module.a), a=5**0.5)
            bound = module.base.in_features**-0.5
            assert module.a.abs().max() <= bound
            assert reference.abs().max() <= bound
            assert abs(module.a.std() - reference.std()) < 0.15 * reference.std()
            assert not module.b.any()
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_saving_twice_gives_the_same_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        adapter = add_adapter(tiny(tiny_llama), rank=4, alpha=6, dropout=0.1, layers=2)
        randomise(adapter)
        adapter.save(tmp_path / folder, "m")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [2, 3]
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == "m"


@pytest.fixture
def saved(tiny_llama: Path, tmp_path: Path) -> Path:
    adapter = add_adapter(tiny(tiny_llama), rank=4, alpha=6, dropout=0.0)
    randomise(adapter)
    adapter.save(tmp_path / "adapter", "m")
    return tmp_path / "adapter"


def edit_config(folder: Path, **changes) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder: Path, change) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "not a plain LoRA adapter: IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 8}, "another shape"),
    ],
)
def test_adapters_of_another_kind(tiny_llama: Path, saved: Path, changes, message: str) -> None:
    edit_config(saved, **changes)
    with pytest.raises(InputError, match=message):
        load_adapter(tiny(tiny_llama), saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "no weights"),
        (lambda s: {**s, "base_model.model.lm_head.bias": torch.ones(3)}, r"lm_head\.bias"),
        (lambda s: {k: v for k, v in s.items() if "0.self_attn.q_proj.lora_B" not in k}, "q_proj"),
        (lambda s: {k.replace("layers.3", "layers.7"): v for k, v in s.items()}, "another model"),
        (lambda s: {k: v[..., :5].contiguous() for k, v in s.items()}, "another model"),
    ],
)
def test_adapters_with_other_weights(tiny_llama: Path, saved: Path, change, message) -> None:
    edit_weights(saved, change)
    with pytest.raises(InputError, match=message):
        load_adapter(tiny(tiny_llama), saved)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_broken_files(tiny_llama: Path, saved: Path, name: str) -> None:
    (saved / name).write_bytes(b"\x00 nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        load_adapter(tiny(tiny_llama), saved)
    (saved / name).unlink()
    with pytest.raises(InputError, match="is no adapter"):
        load_adapter(tiny(tiny_llama), saved)


def test_an_adapter_of_another_model(tiny_models: dict[str, Path], saved: Path) -> None:
    with pytest.raises(InputError, match="another model"):
        load_adapter(tiny(tiny_models["gpt_neox"]), saved)


def test_weights_into_an_adapter_that_is_there(tiny_llama: Path, saved: Path) -> None:
    network = tiny(tiny_llama)
    adapter = add_adapter(network, rank=4, alpha=6, dropout=0.5)
    load_weights(adapter, saved)
    other = tiny(tiny_llama)
    load_adapter(other, saved)
    # Also with dropout: a network is scored as it was loaded, without.
    assert torch.equal(logits(network), logits(other))
    small = add_adapter(tiny(tiny_llama), rank=4, alpha=6, dropout=0.0, layers=1)
    with pytest.raises(InputError, match="other layers"):
        load_weights(small, saved)
    thin = add_adapter(tiny(tiny_llama), rank=2, alpha=6, dropout=0.0)
    with pytest.raises(InputError, match="another shape"):
        load_weights(thin, saved)


def test_networks_without_a_list_of_layers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1, eos_token_id=1)
    with pytest.raises(InputError, match="no list of decoder layers"):
        add_adapter(GPT2LMHeadModel(config), rank=2, alpha=2, dropout=0.0)
