"""From a model's name to its files, its identity, and the network in memory."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from lessonplan.errors import InputError, first_line, nearest
from lessonplan.models.presets import PRESETS, Preset

# Says at every import that a kernel for 4-bit weights must be compiled: nothing to be done about.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Model:
    """A causal language model in memory.

    Attributes:
        name: as the user gave it.
        network: a Transformers `PreTrainedModel`, frozen and in evaluation mode.
        tokenizer: its fast tokenizer.
        digest: SHA-256 of the files that make the model what it is.
    """

    name: str
    network: Any
    tokenizer: Any
    digest: str


def cache_folder() -> Path:
    """Return the folder for converted models: $LESSONPLAN_CACHE or the user's cache folder."""
    chosen = os.environ.get("LESSONPLAN_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("lessonplan"))


def resolve(name: str) -> Path:
    """Return the folder with a model's config, tokenizer and safetensors weights.

    A name is looked up as a preset, a local folder, a local GGUF file, then a repository of the
    Hugging Face hub. GGUF files are converted once and kept in `cache_folder()`.

    Raises:
        InputError: nothing of that name, or the folder lacks what a model needs.
    """
    path = Path(name).expanduser()
    if name in PRESETS:
        folder = _resolve_preset(name, PRESETS[name])
    elif path.is_dir():
        folder = path
    elif path.is_file():
        if path.suffix.lower() != ".gguf":
            raise InputError(
                f"{name} is a file; a model is a folder, or a file that ends in .gguf."
            )
        folder = _converted([path])
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        folder = _from_hub(name)
    else:
        raise InputError(
            f"There is no model {name!r}: it is neither a preset ({', '.join(PRESETS)}), nor a "
            "local folder or .gguf file, nor a hub id (owner/name)." + nearest(name, PRESETS)
        )
    _check(folder)
    return folder


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of a model folder's config, tokenizer and weights, as hexadecimal.

    Names and paths do not enter, so a copy of a model is the same model. Hashing gigabytes takes
    seconds, so the result is remembered by path, size and time of change.
    """
    files = sorted(
        path
        for pattern in (
            "config.json",
            "tokenizer*",
            "*.safetensors",
            "*.model",
            "vocab*",
            "merges*",
        )
        for path in folder.glob(pattern)
    )
    state = json.dumps([[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files])
    memory = cache_folder() / "fingerprints" / hashlib.sha256(state.encode()).hexdigest()
    if memory.is_file() and len(known := memory.read_text()) == 64:
        return known
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    memory.parent.mkdir(parents=True, exist_ok=True)
    scratch = memory.with_suffix(f".{os.getpid()}")
    scratch.write_text(digest.hexdigest())
    scratch.replace(memory)
    return digest.hexdigest()


def check_length(folder: Path, max_tokens: int, name: str) -> None:
    """Refuse to feed a model more tokens than it was made for.

    Raises:
        InputError: `max_tokens` is above the context that the model's configuration states.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    context = (config | config.get("text_config", {})).get("max_position_embeddings")
    if context and max_tokens > context:
        raise InputError(f"max_tokens is {max_tokens}, but {name} reads at most {context}.")


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the fast tokenizer of a model folder.

    Raises:
        InputError: there is none, or it cannot say which characters a token came from.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise InputError(
            f"The tokenizer in {folder} cannot be loaded: {first_line(error)}"
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            f"The tokenizer in {folder} has no fast version (tokenizer.json), which is needed to "
            "know the characters behind each token. Convert it with "
            "transformers.convert_slow_tokenizer."
        )
    return tokenizer


def load(
    name: str,
    *,
    dtype: str = "float32",
    quantization: str = "none",
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> Model:
    """Load a model for tuning and scoring.

    Args:
        name: what `resolve` understands.
        dtype: one of `DTYPES`.
        quantization: "none", or "nf4" for 4-bit NormalFloat weights with double quantisation
            (Dettmers et al. 2023, arXiv 2305.14314; needs the extra `qlora`).
        device: a torch device.
        trust_remote_code: run code that lies beside the weights. Off unless asked for.

    Raises:
        InputError: the model cannot be found or loaded, or an option is unknown.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from lessonplan.models.products import freeze

    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    folder = resolve(name)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {}
    if quantization == "nf4":
        options["quantization_config"] = _nf4(getattr(torch, dtype))
        options["device_map"] = {"": device}
    elif quantization != "none":
        raise InputError(f"quantization must be 'none' or 'nf4', not {quantization!r}.")
    check_device(device)
    with _quiet(transformers_logging):
        try:
            network, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"The model in {folder} cannot be loaded: {first_line(error)}"
            ) from error
    _nothing_missing(report, folder)
    if quantization == "none":
        network = network.to(device)
    for module in network.modules():
        # bitsandbytes repacks 4-bit weights at the first pass without gradients on a CPU, into a
        # kernel that has no backward pass and passes no gradient on.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    freeze(network)
    return Model(name, network.eval(), tokenizer, fingerprint(folder))


def check_device(device: str) -> None:
    """Make sure that torch has a device, and that a GPU gives the same bytes again.

    Without CUBLAS_WORKSPACE_CONFIG and torch's deterministic algorithms, gradients on a GPU are
    summed in any order (torch's page on reproducibility). Both hold for the whole process.

    Raises:
        InputError: torch does not know it, or has no GPU.
    """
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(
            f"device: torch knows no {device!r}. Take cpu, cuda, or a certain GPU such as cuda:1."
        ) from None
    if kind != "cuda":
        return
    if not torch.cuda.is_available():
        raise InputError(
            f"device: {device} needs a GPU and a torch that was built for it, and torch "
            f"{torch.__version__} finds none here. Take device: cpu."
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def release() -> None:
    """Give the memory of models back that nothing holds any more.

    An engine's hooks hold it in a circle, which Python looks for only now and then.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _nf4(compute_dtype: Any) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("quantization: nf4 needs bitsandbytes: pip install 'lessonplan[qlora]'.")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _resolve_preset(name: str, preset: Preset) -> Path:
    parts = [_package_file(package, file) for package, file in preset.parts]
    if parts and all(parts):
        return _converted([part for part in parts if part])
    try:
        return _from_hub(preset.hub)
    except InputError as error:
        if not preset.install:
            raise
        raise InputError(
            f"The model {name} is not installed, and the hub did not give it ({error}) Install it "
            f"with: {preset.install}"
        ) from error


def _package_file(package: str, file: str) -> Path | None:
    """Find a file of an installed package without importing it (its imports may be missing)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / file
    return path if path.is_file() else None


def _from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated types, httpx's among them
        raise InputError(
            f"The Hugging Face hub did not give {repository}: {type(error).__name__}: "
            f"{first_line(error)} Check the name and the network (and `hf auth login` for gated "
            "models), or give a local folder."
        ) from error


def _converted(parts: list[Path]) -> Path:
    """Return a folder with the safetensors copy of a GGUF file, converting it if need be."""
    size = sum(part.stat().st_size for part in parts)
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    stem = parts[0].name.split(".gguf")[0].lower()
    folder = cache_folder() / "models" / f"{stem}-{size}-{digest.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{stem}-") as scratch:
                _convert(parts, Path(scratch))
                (Path(scratch) / "converted").rename(folder)
    return folder


def _convert(parts: list[Path], scratch: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    whole = parts[0]
    if len(parts) > 1:
        whole = scratch / "model.gguf"
        with whole.open("wb") as target:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target)
    with _quiet(transformers_logging):
        try:
            tokenizer = AutoTokenizer.from_pretrained(whole.parent, gguf_file=whole.name)
            network, report = AutoModelForCausalLM.from_pretrained(
                whole.parent,
                gguf_file=whole.name,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # a broken file fails wherever its bytes happen to lead
            raise InputError(
                f"The GGUF file {whole} cannot be read: {first_line(error)}"
            ) from error
        _nothing_missing(report, whole)
        # The weights are plain float32 now; Transformers would refuse to save them as GGUF.
        network.hf_quantizer = None
        network.is_quantized = False
        if hasattr(network.config, "quantization_config"):
            del network.config.quantization_config
        network.save_pretrained(scratch / "converted")
        tokenizer.save_pretrained(scratch / "converted")


def _nothing_missing(report: dict[str, Any], place: Path) -> None:
    """Refuse weights that Transformers would fill with random numbers."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"The weights in {place} lack {len(missing)} of the model's tensors, such as "
            f"{missing[0]}."
        )


def _check(folder: Path) -> None:
    def has(*patterns: str) -> bool:
        return any(next(folder.glob(pattern), None) for pattern in patterns)

    if not has("config.json"):
        raise InputError(f"{folder} holds no config.json, so it is no model folder.")
    if not has("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"):
        raise InputError(
            f"The model folder {folder} has no tokenizer (tokenizer.json). Save it there with "
            "tokenizer.save_pretrained()."
        )
    if not has("*.safetensors"):
        found = "pickled weights (.bin), which can run code when loaded" if has("*.bin") else "none"
        raise InputError(f"{folder} needs weights as .safetensors; it has {found}.")


@contextmanager
def _quiet(transformers_logging: Any) -> Iterator[None]:
    """Keep Transformers' bars and advice off the terminal while a model loads."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
