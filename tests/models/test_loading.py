"""Names to files to networks; and what is said when that fails."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lessonplan.errors import InputError
from lessonplan.models import PRESETS, loading
from lessonplan.models.loading import cache_folder, fingerprint, load, load_tokenizer, resolve


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "model")


def test_a_folder_is_itself(copy: Path) -> None:
    assert resolve(str(copy)) == copy


def test_a_folder_in_the_home(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(copy.parent))
    assert resolve("~/model") == copy


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2-135m", "Did you mean 'smollm2-135m'"),
        ("llama2-7", "Did you mean 'llama2-7b'"),
        ("zzz", "neither a preset"),
        ("./not/here", "nor a local folder"),
        ("/not/here", "nor a local folder"),
        ("a/b/c", "neither a preset"),
    ],
)
def test_no_such_model(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(name)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"x")
    with pytest.raises(InputError, match=r"ends in \.gguf"):
        resolve(str(file))


@pytest.mark.parametrize("content", [b"", b"nonsense that is no GGUF at all", b"GGUF\x03\0\0\0"])
def test_a_broken_gguf_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.gguf cannot be read"):
        resolve(str(file))
    left = [p.name for p in (cache_folder() / "models").iterdir() if not p.name.endswith(".lock")]
    assert left == []


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["config.json"], r"no config\.json"),
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer"),
        (["model.safetensors"], r"needs weights as \.safetensors; it has none"),
    ],
)
def test_an_incomplete_folder(copy: Path, missing: list[str], message: str) -> None:
    for name in missing:
        (copy / name).unlink()
    with pytest.raises(InputError, match=message):
        load(str(copy))


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="can run code when loaded"):
        load(str(copy))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_broken_files_of_a_folder(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be loaded"):
        load(str(copy))


def test_weights_that_lack_a_tensor(copy: Path) -> None:
    """Transformers would make random ones up."""
    state = load_file(copy / "model.safetensors")
    del state["model.layers.2.mlp.up_proj.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 .* such as model\.layers\.2\.mlp\.up_proj"):
        load(str(copy))


def test_unknown_options(copy: Path) -> None:
    with pytest.raises(InputError, match="dtype must be one of"):
        load(str(copy), dtype="int8")
    with pytest.raises(InputError, match="quantization must be"):
        load(str(copy), quantization="int8")


def test_a_hub_id_while_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(InputError, match=r"did not give no-such/model.*or give a local folder"):
        resolve("no-such/model")


def test_a_model_in_the_hubs_cache(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache layout: snapshots/<commit> with links into blobs."""
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hub" / "models--owner--name"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in copy.iterdir():
        file.rename(home / "blobs" / file.name)
        (snapshot / file.name).symlink_to(home / "blobs" / file.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub")
    )
    assert resolve("owner/name") == snapshot
    assert load("owner/name").network.config.hidden_size == 32


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.parts])
def test_a_preset_without_its_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_package_file", lambda package, file: None)
    asked = []

    def offline(repository: str) -> Path:
        asked.append(repository)
        raise InputError("No network.")

    monkeypatch.setattr(loading, "_from_hub", offline)
    with pytest.raises(InputError) as error:
        resolve(name)
    assert asked == [PRESETS[name].hub]
    assert PRESETS[name].install in str(error.value)
    assert "pip install" in PRESETS[name].install


def test_a_preset_of_the_hub(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_package_file", lambda package, file: None)
    monkeypatch.setattr(loading, "_from_hub", lambda repository: copy)
    assert resolve("smollm2-135m") == copy
    assert resolve("mistral-7b") == copy


def test_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lessonplan_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / "model.gguf").write_bytes(b"x")
    monkeypatch.syspath_prepend(str(tmp_path))
    find = loading._package_file
    assert find("lessonplan_test_package", "model.gguf") == package / "model.gguf"
    assert find("lessonplan_test_package", "other.gguf") is None
    assert find("lessonplan_no_such_package", "model.gguf") is None


def test_fingerprint_is_of_the_content(copy: Path, tmp_path: Path) -> None:
    first = fingerprint(copy)
    assert len(first) == 64
    other = shutil.copytree(copy, tmp_path / "elsewhere")
    assert fingerprint(other) == first
    (other / "README.md").write_text("not part of the model")
    (other / "generation_config.json").unlink(missing_ok=True)
    assert fingerprint(other) == first
    seen = {first}
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        content = bytearray((other / name).read_bytes())
        content[-2] ^= 1
        (other / name).write_bytes(content)
        seen.add(fingerprint(other))
    (other / "model-2.safetensors").write_bytes(b"more")
    seen.add(fingerprint(other))
    assert len(seen) == 5


def test_a_fingerprint_is_remembered_until_a_file_changes(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fingerprint(copy)
    monkeypatch.setattr(loading.hashlib, "file_digest", None)  # hashing again would fail
    assert fingerprint(copy) == first
    weights = copy / "model.safetensors"
    at = weights.stat().st_mtime_ns + 1
    os.utime(weights, ns=(at, at))
    with pytest.raises(TypeError):
        fingerprint(copy)


CODE = """
from pathlib import Path
Path({marker!r}).write_text("executed")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class MyConfig(LlamaConfig):
    model_type = {kind!r}
class MyModel(LlamaForCausalLM):
    config_class = MyConfig
class MyTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("kind", ["llama", "never_heard_of"])
def test_code_beside_the_weights_runs_only_when_asked_for(
    copy: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.setattr("builtins.input", lambda *a: "y")  # whoever may be asked says yes
    (copy / "code.py").write_text(CODE.format(marker=str(marker), kind=kind))
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.MyModel"}
    config["model_type"] = kind
    (copy / "config.json").write_text(json.dumps(config))
    file = copy / "tokenizer_config.json"
    of_tokenizer = json.loads(file.read_text())
    of_tokenizer["auto_map"] = {"AutoTokenizer": [None, "code.MyTokenizer"]}
    file.write_text(json.dumps(of_tokenizer))
    if kind == "llama":
        assert type(load(str(copy)).network).__name__ == "LlamaForCausalLM"
    else:
        with pytest.raises(InputError, match="cannot be loaded"):
            load(str(copy))
    assert not marker.exists()
    assert type(load(str(copy), trust_remote_code=True).network).__name__ == "MyModel"
    assert marker.exists()


def test_a_loaded_model_is_frozen_and_quiet(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load(str(copy))
    assert not any(p.requires_grad for p in model.network.parameters())
    assert not model.network.training
    assert model.network.config._attn_implementation == "sdpa"
    assert model.digest == fingerprint(copy)
    assert model.name == str(copy)
    assert next(model.network.parameters()).dtype == torch.float32
    assert load(str(copy), dtype="bfloat16").network.dtype == torch.bfloat16
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_a_tokenizer_must_know_characters(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        is_fast = False

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: Slow())
    with pytest.raises(InputError, match="no fast version"):
        load_tokenizer(copy)


def write_gguf(file: Path, tiny_llama: Path) -> None:
    """Write the tiny Llama as a float32 GGUF, as llama.cpp's converter would."""
    import gguf

    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    c = network.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(c.vocab_size)
    inner = json.loads((tiny_llama / "tokenizer.json").read_text())["model"]
    tokens = sorted(inner["vocab"], key=inner["vocab"].get)
    tokens += [f"<unused{i}>" for i in range(c.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t.startswith("<") and len(t) > 1 else 1 for t in tokens])
    merges = [m if isinstance(m, str) else " ".join(m) for m in inner["merges"]]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in network.state_dict().items():
        array = tensor.numpy().copy()
        for theirs, short in (
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("model.layers", "blk"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ):
            name = name.replace(theirs, short)
        if ".attn_q." in name or ".attn_k." in name:  # llama.cpp interleaves the rotary halves
            heads = array.shape[0] // 8
            array = array.reshape(heads, 2, 4, -1).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_is_converted_once(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "Tiny.Q.gguf"
    write_gguf(file, tiny_llama)
    folder = resolve(str(file))
    assert folder.parent == cache_folder() / "models"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    original = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model = load(str(file))
    ids = torch.tensor([[1, 20, 30, 7, 150]])
    with torch.no_grad():
        torch.testing.assert_close(
            model.network(ids).logits, original(ids).logits, atol=1e-4, rtol=1e-4
        )
    text = "Under which category is the disease of é?"
    plain = load_tokenizer(tiny_llama)
    assert (
        model.tokenizer(text, add_special_tokens=False)["input_ids"]
        == (plain(text, add_special_tokens=False)["input_ids"])
    )
    short = tmp_path / "short.gguf"
    short.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"short\.gguf cannot be read"):
        resolve(str(short))
    # Split in parts, as a package may hold it, it is the same model; and it is not converted anew.
    content = file.read_bytes()
    parts = []
    for i, half in enumerate((content[:5000], content[5000:])):
        parts.append(tmp_path / f"part.gguf.{i}")
        parts[-1].write_bytes(half)
    from_parts = loading._converted(parts)
    assert from_parts != folder
    assert fingerprint(from_parts) == fingerprint(folder)

    def fail(*args):
        raise AssertionError("converted again")

    monkeypatch.setattr(loading, "_convert", fail)
    assert resolve(str(file)) == folder
    assert loading._converted(parts) == from_parts
    moved = tmp_path / "sub" / "tiny.q.gguf"
    moved.parent.mkdir()
    file.rename(moved)
    assert resolve(str(moved)) == folder
