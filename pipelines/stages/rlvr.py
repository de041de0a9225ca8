"""Stage RLVR: GRPO with verifiable rewards (TRL; arXiv 2402.03300)."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from pipelines.data.chat import user
from pipelines.data.records import problems
from pipelines.errors import UserError
from pipelines.evals.generation import decode_plainly
from pipelines.models.checkpoint import SPECIAL_IDS
from pipelines.models.loading import load_model
from pipelines.models.tokenizer import load_tokenizer
from pipelines.recipe.schema import max_prompt_length
from pipelines.rewards import judge_all
from pipelines.run_dir.job import StageJob
from pipelines.training import engine
from pipelines.training.facts import training_facts


def run(job: StageJob) -> dict[str, Any]:
    """Train and write the RL-tuned model to `model/`."""
    config, settings = job.config, job.config.rlvr
    arguments = engine.training_arguments(
        GRPOConfig, config, settings, job.stage_dir, steps=settings.max_steps,
        schedule="constant_with_warmup", num_generations=settings.num_generations,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature, beta=settings.beta, epsilon=settings.epsilon,
        use_vllm=settings.use_vllm,
        # `problems` has already shuffled them with the seed, pass by pass.
        shuffle_dataset=False,
    )  # fmt: skip
    # The mean rewards of the first and last quarter need the reward of every step.
    arguments.logging_steps = 1
    tokenizer = load_tokenizer(job.inputs["model"], padding_side="left")
    dataset, num_dropped = _prompts(job, tokenizer)
    model = load_model(job.inputs["model"], settings.dtype, config)
    own = model.generation_config
    decode_plainly(model)
    trainer = GRPOTrainer(
        model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer,
        reward_funcs=[verified_answer],
    )  # fmt: skip
    engine.train(trainer, job.stage_dir, settings)
    # Only rollouts run without the generation config: the exported model keeps its input's.
    for name in SPECIAL_IDS:
        setattr(own, name, getattr(trainer.model.generation_config, name))
    trainer.model.generation_config = own
    tokenizer.padding_side = "right"
    return {
        **training_facts(trainer),
        **reward_facts(trainer.state.log_history, settings.max_zero_variance),
        "prompts_too_long": num_dropped,
        **engine.export(trainer, tokenizer, job, settings.dtype),
    }


def _prompts(job: StageJob, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, int]:
    """Prompts with gold answers, and the number dropped because no completion would fit."""
    config, settings = job.config, job.config.rlvr
    count = settings.max_steps * settings.global_batch_size // settings.num_generations
    room = max_prompt_length(settings, config.sequence_length)
    found = problems(settings.sources, config.data_root, config.seed, count=count)
    rows = [
        {"prompt": user(p.prompt), "answer": p.answer, "reward_kind": p.reward}
        for p in found
        if len(tokenizer(p.prompt, add_special_tokens=False).input_ids) + 4 <= room
    ]
    if len(rows) * settings.num_generations < settings.global_batch_size:
        limit = "rlvr.max_prompt_length is"
        if not settings.max_prompt_length:
            limit = (
                f"sequence_length {config.sequence_length} minus rlvr.max_completion_length "
                f"{settings.max_completion_length} leaves"
            )
        raise UserError(
            f"only {len(rows)} RL prompts fit, fewer than a step needs: {limit} {room} tokens for "
            "a prompt. Lower rlvr.max_completion_length, or give shorter prompts."
        )
    return Dataset.from_list(rows), len(found) - len(rows)


def verified_answer(
    completions: list[list[dict[str, str]]], answer: list[str], reward_kind: list[str], **_: Any
) -> list[float]:
    """Reward function for TRL: 1.0 for a completion that its reward kind accepts, else 0.0."""
    judged = [(turns[0]["content"], gold) for turns, gold in zip(completions, answer, strict=True)]
    rewards: dict[int, float] = {}
    for kind in sorted(set(reward_kind)):
        own = [at for at, found in enumerate(reward_kind) if found == kind]
        rewards |= zip(own, judge_all(kind, [judged[at] for at in own]), strict=True)
    return [rewards[at] for at in range(len(judged))]


def reward_facts(history: list[dict[str, Any]], max_zero_variance: float) -> dict[str, Any]:
    """Mean reward of the first and last quarter, and the fraction of zero-variance groups.

    All completions of a zero-variance group get the same reward, so the group has no gradient.
    """
    rewards = [line["reward"] for line in history if "reward" in line]
    key = "frac_reward_zero_std"
    zero_variance = [line[key] for line in history if key in line]
    quarter = max(1, len(rewards) // 4)
    share = sum(zero_variance) / len(zero_variance)
    return {
        "status": "no signal" if share > max_zero_variance else "ok",
        "reward_first_quarter": sum(rewards[:quarter]) / quarter,
        "reward_last_quarter": sum(rewards[-quarter:]) / quarter,
        "zero_variance_groups": share,
    }
