"""Small random-weight models of several architectures, with a tokenizer of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A shell that starts the tests in the background lets them, and their children, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared" / "data"
ENGINE_TESTS = ("models", "training", "evaluation", "integrations")
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "gpt_neox")


@pytest.fixture(autouse=True)
def one_thread_and_own_cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Tests of the engine run on one thread; fast ones with a cache of their own."""
    if request.path.parent.name not in ENGINE_TESTS:
        yield
        return
    import torch

    if "slow" not in request.keywords:
        monkeypatch.setenv("LESSONPLAN_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real exam questions, which stands beside a development checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real exam questions in {SHARED}")
    return SHARED


def tiny_config(kind: str):
    import transformers as t

    shape = {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    heads = {"head_dim": 8}
    return {
        "llama": lambda: t.LlamaConfig(**shape),
        "mistral": lambda: t.MistralConfig(**shape, **heads, sliding_window=24),
        "qwen2": lambda: t.Qwen2Config(**shape),
        "qwen3": lambda: t.Qwen3Config(**shape, **heads),
        "gemma3": lambda: t.Gemma3TextConfig(
            **shape,
            **heads,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        "phi3": lambda: t.Phi3Config(**shape),
        "gpt_neox": lambda: t.GPTNeoXConfig(
            **{k: v for k, v in shape.items() if k != "num_key_value_heads"}
        ),
    }[kind]()


def tiny_tokenizer():
    """A byte-level BPE tokenizer that adds a begin-of-sequence token, trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = "Question Answer Under which category is the disease of classified A B C D E one among"
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([words, f"{words}: {words}?"] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def byte_tokenizer():
    """The tokenizer of the small models."""
    return tiny_tokenizer()


def build_tiny(kind: str, folder: Path) -> Path:
    """Write a random model whose weights are large enough for its scores to differ."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    network.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Architecture -> folder of a small random-weight model."""
    root = tmp_path_factory.mktemp("tiny")
    return {kind: build_tiny(kind, root / kind) for kind in ARCHITECTURES}


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random-weight Llama."""
    return build_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")
