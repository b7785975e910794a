"""Low-rank adapters on linear layers, in PEFT's format on disk.

The module is our own because it makes fewer temporaries than PEFT's (see bench/); its outputs and
gradients equal PEFT's, and `peft.PeftModel.from_pretrained` reads what `save` writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessonplan.errors import InputError
from lessonplan.models.products import FrozenLinear, in_float32_on_cpu, low_rank
from lessonplan.seeds import stream_seed

# Settings of PEFT's LoRA under which the update is not (alpha / rank) B A.
VARIANTS = (
    "use_dora",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "use_bdlora",
)
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


Factors = tuple[nn.Parameter, nn.Parameter]  # A and B


@dataclass
class Lanes:
    """Whose the tokens are that the layers of a network get, while several adapters are in use.

    Attributes:
        sizes: by the number of tokens in a product, how many of them belong to each adapter, one
            after the other. Not looked at while a single adapter is in use.
    """

    sizes: dict[int, list[int]] = field(default_factory=dict)

    def of(self, tokens: int) -> list[int]:
        """Return how many of so many tokens belong to each adapter.

        Raises:
            RuntimeError: no product of the batch has so many.
        """
        if tokens not in self.sizes:
            raise RuntimeError(
                f"a layer got {tokens} tokens, and whose they are is known for "
                f"{' or '.join(map(str, self.sizes)) or 'no number'} alone"
            )
        return self.sizes[tokens]


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trained low-rank update (Hu et al. 2021, arXiv 2106.09685).

    y = W x + b + (alpha / rank) B A dropout(x)

    Attributes:
        a: ``[rank, in]``; b: ``[out, rank]``; both float32.
        used: A and B of the adapters in use: a and b, or those of several; see `use`.
        lanes: shared by all layers of a network.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, dropout: float, lanes: Lanes | None = None
    ) -> None:
        super().__init__()
        device = base.weight.device
        self.base = base
        self.scaling = alpha / rank
        self.dropout = dropout
        self.lanes = Lanes() if lanes is None else lanes
        self.a = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.used: list[Factors] = [(self.a, self.b)]

    def forward(self, x: Tensor) -> Tensor:
        dropping = self.dropout > 0 and self.training
        weight, bias = self.base.weight, self.base.bias
        tokens = x.numel() // x.shape[-1]
        sizes = [tokens] if len(self.used) == 1 else self.lanes.of(tokens)
        if type(self.base) is FrozenLinear and not dropping and in_float32_on_cpu(x, weight):
            factors = [factor for pair in self.used for factor in pair]
            return low_rank(x, weight, bias, self.scaling, sizes, *factors)
        out: Tensor = self.base(x)
        seen = x.to(self.a.dtype)
        if dropping:
            seen = nn.functional.dropout(seen, self.dropout)
        parts = [
            self._updated(*of_adapter)
            for of_adapter in zip(
                out.reshape(-1, out.shape[-1]).split_with_sizes(sizes),
                seen.reshape(-1, seen.shape[-1]).split_with_sizes(sizes),
                self.used,
                strict=True,
            )
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view_as(out)

    def _updated(self, out: Tensor, seen: Tensor, factors: Factors) -> Tensor:
        a, b = factors
        low = seen @ a.t()
        if out.dtype == low.dtype:
            # One fused product and sum, in place of a product, a scaling and a sum.
            return torch.addmm(out, low, b.t(), alpha=self.scaling)
        return out + (self.scaling * (low @ b.t())).to(out.dtype)


class Adapter:
    """A and B for each of a network's `LoraLinear` modules.

    Attributes:
        modules: by the name of the layer that each wraps.
        weights: this adapter's A and B, by the same names.
    """

    def __init__(
        self,
        modules: Mapping[str, LoraLinear],
        config: dict[str, Any],
        weights: Mapping[str, Factors] | None = None,
    ) -> None:
        self.modules = dict(modules)
        self.config = config
        own = {name: (module.a, module.b) for name, module in self.modules.items()}
        self.weights = own if weights is None else dict(weights)
        self._others: list[Adapter] = []

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [factor for pair in self.weights.values() for factor in pair]

    def several(self, n: int) -> list[Adapter]:
        """Return n adapters of these layers, this one first; the others are made once."""
        while len(self._others) < n - 1:
            weights = {
                name: (nn.Parameter(torch.zeros_like(a)), nn.Parameter(torch.zeros_like(b)))
                for name, (a, b) in self.weights.items()
            }
            self._others.append(Adapter(self.modules, self.config, weights))
        return [self, *self._others[: n - 1]]

    def reset(self, seed: int) -> None:
        """Draw fresh weights: A uniform as in PEFT (Kaiming with a = sqrt 5), B zero."""
        generator = torch.Generator().manual_seed(stream_seed(seed, "adapter"))
        with torch.no_grad():
            for a, b in self.weights.values():
                bound = 1 / math.sqrt(a.shape[1])
                a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
                b.zero_()

    def zero(self) -> None:
        """Make the network answer as if it had no adapter."""
        with torch.no_grad():
            for a, b in self.weights.values():
                # A as well: after a failed tuning it may hold NaN, and 0 times NaN is NaN.
                a.zero_()
                b.zero_()

    def train(self, mode: bool) -> None:
        for module in self.modules.values():
            module.training = mode

    def save(self, folder: Path, base_model: str) -> None:
        """Write adapter_config.json and adapter_model.safetensors, as PEFT does."""
        from peft import LoraConfig
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = LoraConfig(**self.config, task_type="CAUSAL_LM", inference_mode=True)
        config.base_model_name_or_path = base_model
        config.save_pretrained(folder)
        # PEFT holds the targets in a set, whose order changes from process to process.
        file = folder / "adapter_config.json"
        written = json.loads(file.read_text())
        written["target_modules"] = sorted(written["target_modules"])
        file.write_text(json.dumps(written, indent=2, sort_keys=True))
        state = {}
        for name, (a, b) in self.weights.items():
            state[f"base_model.model.{name}.lora_A.weight"] = a.detach().cpu().contiguous()
            state[f"base_model.model.{name}.lora_B.weight"] = b.detach().cpu().contiguous()
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def add_adapter(
    network: Any, *, rank: int, alpha: float, dropout: float, layers: int | None = None
) -> Adapter:
    """Wrap every linear layer of the top decoder layers, in place, and return the adapter.

    Args:
        network: a causal language model; its output projection stays as it is.
        layers: how many of the top layers; None for all.

    Raises:
        InputError: the network has no list of decoder layers, or no linear layer in them.
    """
    decoder = getattr(network.base_model, "layers", None)
    if not isinstance(decoder, nn.ModuleList):
        raise InputError(f"{type(network).__name__} has no list of decoder layers to adapt.")
    first = 0 if layers is None else max(0, len(decoder) - layers)
    names = {module: name for name, module in network.named_modules()}
    chosen = {
        names[module]: module
        for layer in decoder[first:]
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    }
    if not chosen:
        raise InputError(f"The layers of {type(network).__name__} hold no linear layers to adapt.")
    config = {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in chosen}),
    }
    if first > 0:
        config["layers_to_transform"] = list(range(first, len(decoder)))
        config["layers_pattern"] = "layers"
    modules = {}
    lanes = Lanes()
    for name, linear in chosen.items():
        parent, leaf = name.rsplit(".", 1)
        modules[name] = LoraLinear(linear, rank, alpha, dropout, lanes).eval()
        setattr(network.get_submodule(parent), leaf, modules[name])
    return Adapter(modules, config)


def use(adapters: Sequence[Adapter]) -> None:
    """Have a network's layers use these adapters, each for its share of the tokens; see `Lanes`."""
    for name, module in adapters[0].modules.items():
        module.used = [adapter.weights[name] for adapter in adapters]


def remove_adapter(network: Any, adapter: Adapter) -> None:
    """Put the wrapped linear layers back."""
    for name, module in adapter.modules.items():
        parent, leaf = name.rsplit(".", 1)
        setattr(network.get_submodule(parent), leaf, module.base)


def load_adapter(network: Any, folder: Path) -> Adapter:
    """Wrap a network's layers with an adapter that was saved in PEFT's format.

    Raises:
        InputError: no adapter there, one of another kind than LoRA, or one for another model.
    """
    config, weights = _read_adapter(folder)
    modules: dict[str, LoraLinear] = {}
    for name, (a, b) in weights.items():
        try:
            linear = network.get_submodule(name)
        except AttributeError:
            linear = None
        if not isinstance(linear, nn.Linear) or (linear.in_features, linear.out_features) != (
            a.shape[1],
            b.shape[0],
        ):
            raise InputError(f"The adapter in {folder} is for another model: {name} does not fit.")
        module = LoraLinear(linear, config["r"], config["lora_alpha"], config["lora_dropout"])
        parent, leaf = name.rsplit(".", 1)
        setattr(network.get_submodule(parent), leaf, module.eval())
        modules[name] = module
    keys = (
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "layers_to_transform",
        "layers_pattern",
    )
    adapter = Adapter(modules, {key: config[key] for key in keys if config.get(key) is not None})
    load_weights(adapter, folder)
    return adapter


def load_weights(adapter: Adapter, folder: Path) -> None:
    """Give an adapter the weights that were saved in a folder.

    Raises:
        InputError: the folder holds no adapter, or one of other layers or another rank.
    """
    _, weights = _read_adapter(folder)
    if weights.keys() != adapter.modules.keys():
        raise InputError(f"The adapter in {folder} is for other layers than this model's.")
    with torch.no_grad():
        for name, (a, b) in weights.items():
            own_a, own_b = adapter.weights[name]
            if a.shape != own_a.shape or b.shape != own_b.shape:
                raise InputError(f"The adapter in {folder} has another shape at {name}.")
            own_a.copy_(a)
            own_b.copy_(b)


def _read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    """Return an adapter's configuration and, by layer, its A and B."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_file, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not config_file.is_file() or not file.is_file():
        pickled = "; adapter_model.bin is pickled, which can run code when loaded"
        has_pickled = (folder / "adapter_model.bin").is_file()
        raise InputError(
            f"{folder} is no adapter: it needs adapter_config.json and adapter_model.safetensors"
            f"{pickled if has_pickled else ''}."
        )
    try:
        config: dict[str, Any] = json.loads(config_file.read_text())
        state = load_file(file)
    except (ValueError, OSError, SafetensorError) as error:
        raise InputError(f"The adapter in {folder} cannot be read: {error}") from error
    unsupported = [key for key in VARIANTS if config.get(key)]
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        unsupported.append("init_lora_weights")  # such a start changes the model's own weights
    kind = config.get("peft_type")
    if kind != "LORA" or unsupported:
        raise InputError(f"{folder} is not a plain LoRA adapter: {', '.join(unsupported) or kind}.")
    weights = {}
    for key in [key for key in state if key.endswith(".lora_A.weight")]:
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = state.pop(key.replace("lora_A", "lora_B"), None)
        if b is not None:
            weights[name] = (state.pop(key), b)
    if state or not weights:
        found = next(iter(state), "no weights")
        raise InputError(f"{folder} is not an adapter of linear layers alone: it holds {found}.")
    return config, weights
