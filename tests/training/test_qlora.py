"""QLoRA on the CPU: 4-bit weights score, and pass gradients on, like those they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lessonplan.data import load_questions, sample
from lessonplan.models.loading import _package_file, load
from lessonplan.models.lora import LoraLinear
from lessonplan.models.presets import PRESETS
from lessonplan.models.rows import question_rows
from lessonplan.training import Recipe
from lessonplan.training.recipe import paper_recipe
from lessonplan.training.train import prepare
from lessonplan.training.tune import tune

pytest.importorskip("bitsandbytes", reason="needs the extra qlora")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer) -> Path:
    """A small Llama whose layers are wide enough for blocks of 64 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("nf4") / "llama"
    shape = {"vocab_size": 600, "hidden_size": 128, "intermediate_size": 192}
    config = LlamaConfig(**shape, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(config).save_pretrained(path)
    byte_tokenizer.save_pretrained(path)
    return path


def test_gradients_pass_through_four_bit_weights(folder: Path) -> None:
    import bitsandbytes as bnb

    recipe = Recipe(quantization="nf4", threads=1)
    model, engine, adapter = prepare(str(folder), recipe)
    assert engine.sharing
    assert engine.reading
    adapter.reset(0)
    plain = load(str(folder)).network
    for name, module in model.network.named_modules():
        if isinstance(module, LoraLinear):
            assert isinstance(module.base, bnb.nn.Linear4bit)
            whole = bnb.functional.dequantize_4bit(
                module.base.weight.data, module.base.weight.quant_state
            )
            plain.get_submodule(name).weight.data = whole.float()
    ids = torch.randint(600, (1, 12))
    states = model.network.get_input_embeddings()(ids).detach()
    found, expected = states.clone().requires_grad_(), states.clone().requires_grad_()
    logits = [
        network(inputs_embeds=x).logits
        for network, x in ((model.network, found), (plain, expected))
    ]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    for out in logits:
        out.log_softmax(-1)[0, :, 7].sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-4, rtol=1e-3)
    assert np.isfinite(found.grad.numpy()).all()
    assert found.grad.abs().max() > 0


@pytest.mark.slow
def test_the_papers_recipe_teaches_the_real_model() -> None:
    """NF4 with double quantisation, all linear layers, on a few questions; twice the same bytes."""
    if not all(_package_file(*part) for part in PRESETS["smollm2-135m"].parts):
        pytest.skip(f"needs SmolLM2: {PRESETS['smollm2-135m'].install}")
    changed = {"learning_rate": 5e-4, "epochs": 2, "threads": 1}
    recipe = Recipe(**paper_recipe(["smollm2-135m"], changed))
    assert recipe.quantization == "nf4"
    assert recipe.adapter.layers == "all"
    model, engine, adapter = prepare("smollm2-135m", recipe)
    layer = model.network.base_model.layers[0].mlp.up_proj
    assert isinstance(layer, LoraLinear)
    assert layer.base.weight.quant_state.nested  # double quantisation
    questions = sample(load_questions("icd10cm", split="train"), 16, 0)
    rows = question_rows(
        model.tokenizer,
        questions,
        "cloze",
        template=None,
        max_tokens=recipe.max_tokens,
        only_answer=True,
    )
    order = np.tile(np.arange(len(rows)), recipe.epochs)
    logs = [tune(engine, adapter, rows, order, recipe, seed=3).losses for _ in range(2)]
    assert logs[0].tobytes() == logs[1].tobytes()
    half = len(logs[0]) // 2
    assert logs[0][half:].mean() < 0.9 * logs[0][:half].mean()
