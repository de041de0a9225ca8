"""Checks of a whole plan before its first stage starts."""

from __future__ import annotations

import importlib.util
import operator
import shutil
from itertools import product
from pathlib import Path

from pipelines.data.inspection import SourceFacts, inspect_source
from pipelines.data.new_tokenizer import check_made_tokenizer
from pipelines.errors import UserError
from pipelines.evals.availability import asked_here, check_available, check_lengths
from pipelines.machine import slurm
from pipelines.machine.process import cpp_compiler, num_cores, num_gpus
from pipelines.models.checkpoint import ModelRef, has_chat_template, own_code, read_model_config
from pipelines.models.tokenizer import check_tokenizers, num_tokens
from pipelines.plan import placement
from pipelines.plan.context import check_context, longest_context
from pipelines.plan.estimate import bytes_to_write, estimate
from pipelines.plan.identity import check_unchanged
from pipelines.plan.kinds import kind_of
from pipelines.plan.sources import settings_of, sources_of
from pipelines.plan.stage import Stage
from pipelines.quantities import quantity
from pipelines.recipe.rules import check_one_step, check_points
from pipelines.recipe.schema import (
    Config,
    LaunchConfig,
    MidTrainConfig,
    PretrainConfig,
    RlvrConfig,
    SourceConfig,
    TrainConfig,
)
from pipelines.recipe.schema.training import Records
from pipelines.rewards import sandbox
from pipelines.run_dir.disk import free_bytes
from pipelines.run_dir.paths import RunDir
from pipelines.run_dir.resume_state import changed_versions, check_split, newest_marker


def check_plan(stages: list[Stage], run: RunDir) -> dict[str, SourceFacts]:
    """Check launch settings, models and data of all stages of a plan.

    Returns:
        Facts about each data source, by config key; their hashes are part of the identities.

    Raises:
        UserError: the first problem.
    """
    _check_launches(stages)
    check_settings(stages)
    for stage in stages:
        _check_packages(stage)
        if kind_of(stage.kind).asks:
            check_available(stage.config.eval, stage.config.data_root)
        if stage.kind == "evaluate":
            asked = asked_here(stage.config.eval, stage.config.data_root)
            check_lengths(asked, stage.config.eval.max_length or longest_context(stage, stages))
    _check_sandbox(stages)
    facts = _inspect_sources(stages, run)
    check_unchanged(stages, run)
    _check_reference(stages, run)
    check_splits(stages, run)
    check_disk(stages, run)
    return facts


def check_settings(stages: list[Stage]) -> None:
    """The checks of a plan that need neither its data nor the machine that it will run on.

    Raises:
        UserError: batches, lengths, models or sources do not go together.
    """
    for stage in stages:
        _check_batches(stage)
        _check_models(stage)
        check_context(stage, stages)
    _check_separation(stages[0].config, stages)


def _inspect_sources(stages: list[Stage], run: RunDir) -> dict[str, SourceFacts]:
    config, facts = stages[0].config, {}
    cache = run.data / "inspected.json" if run.root.is_dir() else None
    for stage in stages:
        sources = {key: source for key, source in sources_of(stage).items() if source.weight > 0}
        imports = stage.kind == "pretrain" and "base" in stage.inputs
        if not (sources or imports or kind_of(stage.kind).asks):
            raise UserError(
                f"{stage.name} has no data: the recipe '{config.name}' sets no "
                f"{stage.kind}.sources with a weight above 0."
            )
        for key, source in sources.items():
            if key not in facts:
                task = config.eval.tasks.get(key.removeprefix("eval.tasks."))
                facts[key] = inspect_source(
                    key, source, config.data_root, _records(config, key), cache,
                    needs=task.split_by if task else "",
                )  # fmt: skip
    for key in (key for stage in stages for key in sources_of(stage)):
        facts.setdefault(key, SourceFacts([], 0, "weight 0", 0))
    return facts


def check_splits(stages: list[Stage], run: RunDir) -> None:
    """Check ranks and ZeRO stage of a begun stage against its newest checkpoint."""
    for stage in stages:
        stage_dir, settings = run.stage(stage.name), settings_of(stage)
        if stage_dir.is_complete() or not isinstance(settings, TrainConfig):
            continue
        if newest := newest_marker(stage_dir.checkpoints):
            ranks = placement.num_ranks(stage.config.launch)
            check_split(newest[0], ranks, settings.zero_stage, stage.kind)


def check_disk(stages: list[Stage], run: RunDir) -> None:
    """Check that the disk of the run directory has space for what the plan still writes."""
    given = (given for given in stages[0].inputs.values() if isinstance(given, ModelRef))
    predicted = estimate(stages, run, next(given, None))
    needed, free = bytes_to_write(predicted, stages, run), free_bytes(run.root)
    if needed > free:
        raise UserError(
            f"--run-dir {run.root}: the plan writes up to {needed} bytes more "
            f"({quantity(needed)}B), and the disk has {free} bytes ({quantity(free)}B) free. Make "
            "room, choose another disk, or keep less (<stage>.save_total_limit, "
            "<stage>.snapshots); `remit plan` shows the bytes of each stage."
        )


def version_warnings(stages: list[Stage], run: RunDir) -> list[str]:
    """Warnings about stages that were run with other package versions."""
    by_change: dict[str, list[str]] = {}
    for stage in stages:
        changes = ", ".join(changed_versions(run.stage(stage.name)))
        if changes:
            by_change.setdefault(changes, []).append(stage.name)
    return [
        f"package versions have changed since {', '.join(names)}: {changes}. Later stages may "
        "differ in the last bits from a run with the old versions."
        for changes, names in by_change.items()
    ]


def _records(config: Config, key: str) -> Records:
    """The type of records of the source at a config key."""
    section = key.split(".")[0]
    if section != "eval":
        records: Records = getattr(config, section).RECORDS
        return records
    return "documents" if key.startswith("eval.bits_per_byte.") else "problems"


def _check_launches(stages: list[Stage]) -> None:
    """Check each distinct launch of a plan; a message names the stage if `stages` overrides it."""
    checked: list[LaunchConfig] = []
    for stage in stages:
        key, launch = kind_of(stage.kind).launch_key, stage.config.launch
        if launch in checked:
            continue
        checked.append(launch)
        try:
            check_launch(launch)
        except UserError as error:
            if key not in stage.config.stages:
                raise
            raise UserError(f"{stage.name} (stages.{key}.launch): {error}") from error


def check_launch(launch: LaunchConfig) -> None:
    """Check ranks, nodes, variables, prologue, time of the job, and the compiler of DeepSpeed.

    Raises:
        UserError: one of them does not fit this machine or job.
    """
    if launch.gpus < 1:
        raise UserError(f"--gpus {launch.gpus}: must be at least 1.")
    placement.check_variables(launch)
    placement.check_prologue(launch)
    slurm.seconds_of_job(launch.stop_before_walltime)
    if launch.hostfile:
        placement.hosts(launch.hostfile)
        if launch.nodes:
            raise UserError(
                f"launch.nodes = {launch.nodes} is for srun, but --hostfile {launch.hostfile} "
                "already lists the nodes. Give one of the two."
            )
    else:
        _check_nodes(launch)
        available = num_gpus() or num_cores()
        if launch.gpus > available:
            what = f"{available} GPUs" if num_gpus() else f"no GPU and {available} CPU cores"
            raise UserError(
                f"--gpus {launch.gpus}: this machine has {what}, enough for {available} ranks."
            )
    if not num_gpus() and not cpp_compiler():
        raise UserError(
            "No C++ compiler found: on CPU, DeepSpeed compiles a communication op at first start. "
            "Install one (Debian, Ubuntu: apt-get install g++), or set CXX to its path."
        )


def _check_nodes(launch: LaunchConfig) -> None:
    if launch.nodes > 1 and not slurm.in_job():
        raise UserError(
            f"launch.nodes = {launch.nodes} needs a SLURM job, and this command runs outside of "
            "one. Write a script with `remit launch --slurm`, or list the nodes with --hostfile."
        )
    if launch.nodes > slurm.num_nodes():
        raise UserError(
            f"launch.nodes = {launch.nodes}: this SLURM job has {slurm.num_nodes()} nodes. "
            "Request more (#SBATCH --nodes), or set launch.nodes lower."
        )
    if placement.through_srun(launch) and shutil.which("srun") is None:
        raise UserError(
            f"This SLURM job has {placement.num_nodes(launch)} nodes, but srun, which starts their "
            "ranks, is not on the PATH. Add its folder to PATH, or set launch.nodes=1."
        )


def _check_batches(stage: Stage) -> None:
    settings, trains = settings_of(stage), kind_of(stage.kind).trains
    ranks = placement.num_ranks(stage.config.launch)
    imports = stage.kind == "pretrain" and stage.inputs
    if not isinstance(settings, TrainConfig) or imports:
        return
    if isinstance(settings, (PretrainConfig, MidTrainConfig)):
        check_one_step(settings, stage.config.sequence_length)
        if trains:
            check_points(settings, stage.config.sequence_length)
    if trains and settings.global_batch_size % ranks:
        raise UserError(
            f"{stage.kind}.global_batch_size = {settings.global_batch_size} cannot be divided by "
            f"{ranks} ranks. Choose a multiple of {ranks}, or another --gpus."
        )


def _check_packages(stage: Stage) -> None:
    """Check that the optional packages which a setting needs are installed."""
    settings = settings_of(stage)
    needed = {
        "vllm": isinstance(settings, RlvrConfig) and settings.use_vllm and "rlvr.use_vllm=true",
        "flash_attn": stage.config.model.attn_implementation == "flash_attention_2"
        and "model.attn_implementation=flash_attention_2",
        "lm_eval": kind_of(stage.kind).asks
        and any(benchmark.enabled for benchmark in stage.config.eval.benchmarks.values())
        and "eval.benchmarks",
        **{name: f"report_to=[{name}]" for name in stage.config.report_to},
    }
    for package, why in needed.items():
        if why and importlib.util.find_spec(package) is None:
            raise UserError(f"{why} needs the package {package}, which is not installed.")


def _check_models(stage: Stage) -> None:
    for role, given in stage.inputs.items():
        if isinstance(given, ModelRef) and given.folder:
            _check_model(given, given.folder, role, stage)
    base, ref = stage.inputs.get("base"), stage.inputs.get("ref") or stage.inputs.get("model")
    if isinstance(base, ModelRef) and isinstance(ref, ModelRef) and base.folder and ref.folder:
        check_tokenizers(base.folder, ref.folder)


def _check_model(model: ModelRef, folder: Path, role: str, stage: Stage) -> None:
    """Check chat template, custom code and embedding of an external model."""
    rows = read_model_config(folder, f"--{role}").get("vocab_size")
    if kind_of(stage.kind).chat and not has_chat_template(folder):
        raise UserError(
            f"{folder}: its tokenizer has no chat template. Import it first (remit "
            "pretrain-ckpt --base ...), which adds one, and give the folder of that stage."
        )
    code = own_code(folder)
    if code and model.name not in stage.config.trust_remote_code:
        raise UserError(
            f"--{role} {model.name}: this model runs custom code ({', '.join(code[:3])}) with all "
            "your rights. Read the code first; then allow it for this model with "
            f"trust_remote_code=[{model.name}]."
        )
    tokens = num_tokens(folder)
    if isinstance(rows, int) and tokens > rows:
        raise UserError(
            f"{folder}: its tokenizer has {tokens} tokens, but its model only {rows} "
            "(vocab_size in config.json). They do not belong together."
        )


def _check_reference(stages: list[Stage], run: RunDir) -> None:
    """Check the tokenizer of an external reference against that of the base, before it is made."""
    first = stages[0]
    if first.kind != "pretrain":
        return
    imported, made = first.inputs.get("base"), run.stage(first.name)
    base = imported.folder if isinstance(imported, ModelRef) else None
    if not base and made.is_complete():
        base = made.model
    for ref in (stage.inputs.get("ref") for stage in stages):
        if isinstance(ref, ModelRef) and ref.folder:
            if base:
                check_tokenizers(base, ref.folder)
            else:
                check_made_tokenizer(first.config, ref.folder)


def _check_separation(config: Config, stages: list[Stage]) -> None:
    """Keep RL prompts out of SFT: sources that read the same file need disjoint hash ranges."""
    if not {"sft", "rlvr"} <= {stage.kind for stage in stages}:
        return
    pairs = product(config.sft.sources.items(), config.rlvr.sources.items())
    for (sft_name, sft), (rl_name, rl) in pairs:
        if _overlap(sft, rl):
            raise UserError(
                f"sft.sources.{sft_name} and rlvr.sources.{rl_name} read the same questions from "
                f"{rl.path}. Split them by hash, for example hash_range: [0, 0.5] for SFT and "
                "[0.5, 1] for RLVR."
            )


def _check_sandbox(stages: list[Stage]) -> None:
    """Refuse to run generated programs without the sandbox."""
    for stage in stages:
        settings = settings_of(stage)
        if isinstance(settings, TrainConfig) and settings.RECORDS != "problems":
            continue
        for key, source in sources_of(stage).items():
            runs_code = source.reward == "code" and source.weight > 0
            if runs_code and (reason := sandbox.unavailable()):
                raise UserError(
                    f"{key}: reward code needs the sandbox, and {reason}. Use another machine, or "
                    "leave the source out; docs/guides/evaluation.md says what it needs."
                )


def _overlap(first: SourceConfig, second: SourceConfig) -> bool:
    if first.kind == "world" or not (first.weight and second.weight):
        return False
    same = operator.attrgetter("kind", "path", "name", "split")
    starts, ends = zip(first.hash_range, second.hash_range, strict=True)
    return bool(same(first) == same(second)) and max(starts) < min(ends)
