"""The DeepSpeed setup of every gradient stage: arguments, ranks, resume, checked export."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from pipelines.models.loading import load_model
from pipelines.recipe.schema import Config, DpoConfig, SftConfig, TrainConfig, micro_batch_rows
from pipelines.run_dir.disk import require_space
from pipelines.run_dir.fail_points import armed, fail_point
from pipelines.run_dir.job import StageJob
from pipelines.run_dir.paths import StageDir
from pipelines.run_dir.shared_memory import own_buffer
from pipelines.training import callbacks
from pipelines.training.finite_guard import FiniteGuard
from pipelines.training.ranks import PATIENCE, barrier, is_main_rank, replaced, world_size
from pipelines.training.step_boundary import StepBoundary, generation_steps

# Largest allowed difference of logits between the trained and the reloaded model, by dtype. Both
# have the same weights; only the order of summation may differ.
LOGITS_TOLERANCE = {"fp32": 1e-3, "bf16": 0.25}

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def zero_config(train: TrainConfig, world_size: int) -> dict[str, Any]:
    """Build DeepSpeed's configuration for a stage from its training settings.

    Micro batch x accumulation x ranks = global batch; raises as `micro_batch_rows`. There is no
    optimizer block: DeepSpeed wraps torch's AdamW and needs to compile nothing.
    """
    micro = micro_batch_rows(train, world_size)
    zero: dict[str, Any] = {
        "stage": train.zero_stage,
        "reduce_bucket_size": 50_000_000,
        "allgather_bucket_size": 50_000_000,
    }
    if train.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": train.global_batch_size // (micro * world_size),
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": train.dtype == "bf16"},
        "steps_per_print": 1_000_000_000,
    }


def training_arguments(
    cls: type[Arguments],
    config: Config,
    train: TrainConfig,
    stage_dir: StageDir,
    *,
    steps: int,
    schedule: str,
    **extra: Any,
) -> Arguments:
    """Build the training arguments of a gradient stage, and start its process group.

    Call this before building the model, which ZeRO-3 needs to come last.
    """
    # Trackers write next to the metrics unless the environment names another folder.
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(stage_dir.root / "tensorboard"))
    os.environ.setdefault("WANDB_DIR", str(stage_dir.root))
    zero = zero_config(train, world_size())
    arguments: Arguments = cls(
        output_dir=str(stage_dir.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=zero["train_micro_batch_size_per_gpu"],
        gradient_accumulation_steps=zero["gradient_accumulation_steps"],
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        max_grad_norm=train.max_grad_norm,
        lr_scheduler_type=schedule,
        warmup_steps=round(train.warmup_ratio * steps),
        logging_steps=max(1, min(train.logging_steps, steps // 4)),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no",
        bf16=train.dtype == "bf16",
        gradient_checkpointing=train.gradient_checkpointing,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        deepspeed=zero,
        seed=config.seed,
        report_to=list(config.report_to),
        run_name="/".join(stage_dir.root.parts[-3:]),
        disable_tqdm=True,
        ddp_timeout=int(PATIENCE.total_seconds()),
        **extra,
    )
    _join_group()
    return arguments


def order_of(settings: SftConfig | DpoConfig) -> dict[str, Any]:
    """The argument that keeps the passes of a training by epochs apart.

    Shuffled as one, a record could come twice before another one comes first.
    """
    return {} if settings.max_steps else {"train_sampling_strategy": "sequential"}


def _join_group() -> None:
    """Join the process group that the launcher's environment describes, through DeepSpeed.

    On CPU, it then unlinks the buffer that DeepSpeed's CPU op shares between ranks: DeepSpeed never
    does, so every rank of every stage would leave 69 MB of memory behind. Mappings stay valid.
    """
    import deepspeed

    # Needed even if the training arguments made the group: DeepSpeed tracks it separately.
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=PATIENCE)
    if not torch.cuda.is_available():
        # After the barrier every rank has opened the buffers of the others.
        dist.barrier()
        own_buffer().unlink(missing_ok=True)


@contextmanager
def unsharded(arguments: TrainingArguments) -> Iterator[None]:
    """Create a model whole on every rank, even under ZeRO-3, which would create it in shards.

    The random initial weights of shards would be different.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(arguments.hf_deepspeed_config)


def train(trainer: Trainer, stage_dir: StageDir, settings: TrainConfig) -> None:
    """Run a trainer to its last step, resuming from the newest complete checkpoint if one exists.

    Raises:
        Stopped: a signal arrived; the checkpoint of the last finished step is complete.
        FloatingPointError: a loss or a gradient is not finite; raised before the update.
    """
    boundary = StepBoundary(
        stage_dir, settings.save_steps, settings.save_seconds, generation_steps(trainer)
    )
    for callback in (
        callbacks.CheckpointMarker(stage_dir, keep=settings.save_total_limit), boundary,
        FiniteGuard(trainer, stage_dir), callbacks.MetricsWriter(stage_dir),
        callbacks.SpaceCheck(stage_dir),
    ):  # fmt: skip
        trainer.add_callback(callback)
    if armed("during a checkpoint write"):
        _fail_inside_saves(trainer)
    checkpoint = callbacks.newest_checkpoint(stage_dir, settings.zero_stage)
    if is_main_rank():
        print(f"resuming from {checkpoint}" if checkpoint else "starting from step 0", flush=True)
    barrier()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    boundary.raise_if_stopped()


def _fail_inside_saves(trainer: Trainer) -> None:
    """Add a fail point to each save, after the engine's state and before the trainer's."""
    save_rng_state = trainer._save_rng_state

    def fail_then_save(output_dir: str) -> None:
        fail_point("during a checkpoint write")
        save_rng_state(output_dir)

    trainer._save_rng_state = fail_then_save


def export(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, job: StageJob, dtype: str
) -> dict[str, Any]:
    """Write `model/` in Hugging Face format and check that it reloads to the same logits.

    Every rank must call it, because under ZeRO-3 it gathers the weights.

    Returns:
        The largest difference of logits between the model in memory and the reloaded one.

    Raises:
        RuntimeError: the reloaded model gives different logits.
    """
    difference = 0.0
    with replaced(job.stage_dir.model) as folder:
        if is_main_rank():
            needed = callbacks.model_bytes(trainer.model)
            require_space(job.stage_dir.root, needed, "the exported model")
        trainer.save_model(str(folder))
        probe = torch.arange(2 * 16).view(2, 16) % len(tokenizer)
        probe = probe.to(trainer.args.device)
        in_memory = _logits(trainer.model_wrapped, probe)
        if is_main_rank():
            tokenizer.save_pretrained(folder)
            with unsharded(trainer.args):
                reloaded = load_model(folder, dtype, job.config).to(probe.device)
                logits = _logits(reloaded, probe)
            difference = float((logits.float() - in_memory.float()).abs().max())
            if not difference <= LOGITS_TOLERANCE[dtype]:
                raise RuntimeError(
                    f"the exported model differs from the trained one: logits are off by "
                    f"{difference}"
                )
            (folder / "training_args.bin").unlink(missing_ok=True)
            fail_point("before model is renamed")
    if is_main_rank():
        fail_point("after model is renamed")
    barrier()
    return {"reload_logits_difference": difference}


@torch.no_grad()
def _logits(model: Any, probe: torch.Tensor) -> torch.Tensor:
    """Logits [2, 16, vocab] from the class's forward, even if the instance's was replaced."""
    module = getattr(model, "module", model)
    module.eval()
    own_forward = module.__dict__.pop("forward", None)
    logits: torch.Tensor = model(input_ids=probe, use_cache=False).logits
    if own_forward is not None:
        module.forward = own_forward
    return logits
