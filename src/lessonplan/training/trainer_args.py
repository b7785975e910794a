"""Which arguments of TRL's trainer a study may set, and why not the others."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lessonplan.errors import InputError, first_line, nearest

# Arguments of the trainer that are refused: why, and which.
_REFUSED = {
    "it changes which questions a step holds": """
        packing packing_strategy padding_free shuffle_dataset group_by_length length_column_name
        train_sampling_strategy dataloader_in_order auto_find_batch_size parallelism_config""",
    "split_batches, dispatch_batches and even_batches change which questions a step holds, and "
    "even_batches gives some of them twice": "accelerator_config",
    "it leaves out the last questions of the order": "dataloader_drop_last",
    "a resumed run would begin anew": "ignore_data_skip",
    "the questions are tokens already, and it changes them": """
        max_length truncation_mode dataset_kwargs eos_token chat_template_path
        remove_unused_columns pad_to_multiple_of""",
    "it changes the loss, or what a question weighs in its step": """
        loss_type label_smoothing_factor neftune_noise_alpha assistant_only_loss
        completion_only_loss average_tokens_across_devices router_aux_loss_coef
        logging_nan_inf_filter use_liger_kernel""",
    "the recipe says it": """
        per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps
        learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio weight_decay
        max_grad_norm adam_beta1 adam_beta2 adam_epsilon bf16 fp16 use_cpu""",
    "it is an argument of its own: seed, out, save_steps, data_workers or resume": """
        seed data_seed output_dir save_steps save_strategy dataloader_num_workers
        resume_from_checkpoint""",
    "its name is activation_checkpointing now": """
        gradient_checkpointing gradient_checkpointing_kwargs""",
}
REFUSED = {name: why for why, names in _REFUSED.items() for name in names.split()}
# What leaves the order, the loss and the recipe alone.
_ALLOWED = """
    activation_checkpointing activation_checkpointing_kwargs activation_offloading
    dataloader_multiprocessing_context dataloader_persistent_workers dataloader_pin_memory
    dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb
    ddp_find_unused_parameters ddp_static_graph ddp_timeout deepspeed fsdp fsdp_config
    logging_steps logging_strategy optim report_to run_name save_total_limit tf32
    torch_empty_cache_steps"""
ALLOWED = _ALLOWED.split()
OPTIMISERS = ("adamw_torch", "adamw_torch_fused", "paged_adamw_8bit")


def check_trainer_args(given: Mapping[str, Any], device: str) -> None:
    """Refuse arguments that would change the order, the loss or the recipe.

    Args:
        given: arguments of `SFTConfig`, by name.
        device: the recipe's.

    Raises:
        InputError: names the argument and why.
    """
    for name, value in given.items():
        if name in REFUSED:
            raise InputError(f"trainer_args: {name} is refused: {REFUSED[name]}.")
        if name not in ALLOWED:
            raise InputError(
                f"trainer_args: {name} is not known to leave order, loss and recipe as they are."
                + nearest(name, ALLOWED)
            )
        if name == "optim":
            _check_optimiser(value)
        if name in ("fsdp", "deepspeed") and device == "cpu":
            raise InputError(f"trainer_args: {name} is for GPUs, and device is cpu.")
        if name == "deepspeed":
            _check_deepspeed(value)


def _check_optimiser(name: Any) -> None:
    if name not in OPTIMISERS:
        raise InputError(
            f"trainer_args: optim must be {', '.join(OPTIMISERS)}, not {name!r}: the recipe's "
            "learning rates are AdamW's."
        )
    if name == "paged_adamw_8bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(f"optim: {name} needs bitsandbytes: pip install 'lessonplan[qlora]'.")
        if not torch.cuda.is_available():
            raise InputError(f"optim: {name} pages a GPU's memory, and there is no GPU.")


def _check_deepspeed(config: Any) -> None:
    """Refuse a DeepSpeed configuration that brings an optimiser or learning rates of its own."""
    if isinstance(config, str | Path):
        try:
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"deepspeed: {config} cannot be read: {first_line(error)}") from error
    for name in ("optimizer", "scheduler"):
        if isinstance(config, dict) and name in config:
            raise InputError(f"deepspeed: leave out {name!r}: the recipe says it.")
