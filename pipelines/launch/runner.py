"""Run a plan: skip complete stages, resume begun ones, refuse those with other settings."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import (
    WRONG_INPUT_CODE,
    Interrupted,
    StageFailed,
    UserError,
)
from pipelines.launch import launcher as launch
from pipelines.launch import memory, shared_server
from pipelines.launch.stop import ReceivedSignals, record_signals
from pipelines.machine.process import num_gpus
from pipelines.machine.slurm import seconds_of_job
from pipelines.models.checkpoint import ModelRef, check_made_model, content_hash
from pipelines.models.tokenizer import check_tokenizers
from pipelines.plan.identity import digest, is_made, is_remade, refusal, stage_fields
from pipelines.plan.kinds import kind_of
from pipelines.plan.placement import can_fork
from pipelines.plan.sources import is_offline, sources_of
from pipelines.plan.stage import CONTAMINATION, Stage
from pipelines.recipe.load import to_dict
from pipelines.run_dir import disk, ledger
from pipelines.run_dir.fail_points import fail_point
from pipelines.run_dir.layout import made_by
from pipelines.run_dir.paths import RunDir, RunLock, StageDir, read_json, write_yaml
from pipelines.run_dir.progress import last_error, tail
from pipelines.run_dir.resume_state import made_with

# Keys of a result that the ledger line has anyway, or that are too long for a line.
NOT_IN_LEDGER = (
    "stage", "kind", "identity", "tasks", "heldout_blocks", "evals", "rounds", "dynamics",
    "movement", "accuracy",
)  # fmt: skip


@dataclass(frozen=True)
class Observer:
    """Callbacks. `tick` is called several times a second while the stage runs."""

    started: Callable[[Stage, Literal["start", "resume"]], None] = lambda stage, how: None
    tick: Callable[[Stage], None] = lambda stage: None
    finished: Callable[[Stage, dict[str, Any]], None] = lambda stage, result: None
    skipped: Callable[[Stage, dict[str, Any]], None] = lambda stage, result: None


@dataclass
class Runner:
    """Runs the stages of a plan in a run directory, whose lock it holds."""

    run: RunDir
    lock: RunLock
    data_sha256: dict[str, str]
    command: str
    observer: Observer
    stages: list[Stage] = field(default_factory=list)
    fork_server: launch.ForkServer | None = None
    failure: StageFailed | None = None

    def run_all(self, stages: list[Stage]) -> dict[str, dict[str, Any]]:
        """Run all stages; returns their results by name.

        If an analysis after other stages fails, its error is not raised but put into `failure`, so
        that the caller can show the results of the others first.

        Raises:
            UserError: a stage folder was made with other inputs.
            StageFailed: the process of a stage failed; its checkpoints stay.
            Interrupted: a signal arrived, or the end of the SLURM job is near.
        """
        self.stages = stages
        results: dict[str, dict[str, Any]] = {}
        try:
            for stage in stages:
                try:
                    results[stage.name] = self.run_one(stage)
                except (StageFailed, UserError) as error:
                    if not (kind_of(stage.kind).derived and results):
                        raise
                    self.failure = self._failed(stage, error)
            return results
        finally:
            if self.fork_server is not None:
                self.fork_server.close()
                self.fork_server = None

    def _failed(self, stage: Stage, error: StageFailed | UserError) -> StageFailed:
        if isinstance(error, StageFailed):
            return error
        log = self.run.stage(stage.name).log
        return StageFailed(stage.name, str(log), str(error), WRONG_INPUT_CODE)

    def run_one(self, stage: Stage) -> dict[str, Any]:
        stage_dir = self.run.stage(stage.name)
        inputs = {role: self._input(role, given) for role, given in stage.inputs.items()}
        for role in ("ref", "model"):
            if "base" in inputs and role in inputs:
                check_tokenizers(Path(inputs["base"]["path"]), Path(inputs[role]["path"]))
        data = {key: self.data_sha256[key] for key in sources_of(stage)}
        fields = stage_fields(stage, {role: i["sha256"] for role, i in inputs.items()}, data)
        how: Literal["start", "resume"] = "start"
        old = made_with(stage_dir)
        if old is not None:
            if old != fields:
                if not is_remade(stage):
                    raise refusal(stage_dir, old, fields)
                stage_dir.result.unlink(missing_ok=True)
            elif is_made(stage_dir):
                result = stage_dir.read_result()
                self._recover_finish(stage, result, fields)
                ledger.append(self.run.ledger, "skip", stage.name, identity=digest(fields))
                self.observer.skipped(stage, result)
                return result
            else:
                how = "resume"
        if seconds_of_job(stage.config.launch.stop_before_walltime) <= 0:
            raise Interrupted(signal.SIGTERM, why="the end of the SLURM job")
        with record_signals() as received:
            stage_dir.root.mkdir(parents=True, exist_ok=True)
            write_yaml(self._spec(stage, inputs, data, fields), stage_dir.config)
            ledger.append(
                self.run.ledger, how, stage.name, kind=stage.kind, identity=digest(fields),
                inputs=inputs, command=self.command,
            )  # fmt: skip
            self.observer.started(stage, how)
            result = self._launch(stage, stage_dir, fields, received)
        # A signal that came too late to stop the stage stops the plan after it.
        received.raise_if_any()
        return result

    def _fork_server(self, stage: Stage) -> launch.Forks | None:
        """The fork server, started with the first stage; None if the stage cannot be forked."""
        if not can_fork(stage.config.launch):
            return None
        if shared_server.named():
            return shared_server.SharedServer((self.lock.descriptor,))
        # A single stage would wait for imports of modules that it does not need.
        if len(self.stages) == 1:
            return None
        if self.fork_server is None:
            offline = all(is_offline(s) for s in self.stages)
            modules = dict.fromkeys(kind_of(s.kind).module for s in self.stages)
            self.fork_server = launch.ForkServer(
                stage.config.launch, tuple(modules), offline, (self.lock.descriptor,)
            )
        first, own = self.fork_server.launch, stage.config.launch
        # Forked ranks inherit threads and variables, so a stage with other settings is not forked.
        same = first.env == own.env and (first.gpus == own.gpus or kind_of(stage.kind).derived)
        return self.fork_server if same else None

    def _launch(
        self, stage: Stage, stage_dir: StageDir, fields: dict[str, Any], received: ReceivedSignals
    ) -> dict[str, Any]:
        started, kills = time.monotonic(), memory.kernel_kills()
        logged = stage_dir.log.stat().st_size if stage_dir.log.is_file() else 0
        ended = launch.run_stage(
            stage.config.launch,
            stage_dir,
            received,
            offline=is_offline(stage),
            inherited=(self.lock.descriptor,),
            fork_server=self._fork_server(stage),
            on_tick=lambda: self.observer.tick(stage),
        )
        if ended.interrupted is not None:
            self._record_interruption(stage, ended.interrupted)
            raise ended.interrupted
        wall_seconds = round(time.monotonic() - started, 2)
        if ended.hang or ended.returncode != 0 or not stage_dir.is_complete():
            reason = self._reason(stage, stage_dir, ended, logged, memory.kernel_kills() - kills)
            ledger.append(
                self.run.ledger, "fail", stage.name, exit_code=ended.returncode,
                seconds=wall_seconds, **({"reason": reason} if reason else {}),
            )  # fmt: skip
            said = last_error(stage_dir.log) or disk.shortage(stage_dir.root)
            # Another program may use this exit code too, so only a message in the log counts.
            if ended.returncode == WRONG_INPUT_CODE and said:
                raise UserError(f"{stage.name}: {said}")
            raise StageFailed(
                stage.name, str(stage_dir.log), tail(stage_dir.log), ended.returncode, reason
            )
        result = stage_dir.read_result() | {"wall_seconds": wall_seconds}
        self._write_finish(stage, result, fields)
        self.observer.finished(stage, result)
        return result

    def _record_interruption(self, stage: Stage, interrupted: Interrupted) -> None:
        """Record `stopped` if the last step is saved, `interrupted` if it may be lost."""
        saved = interrupted.step is not None
        ledger.append(
            self.run.ledger, "interrupt", stage.name, signal=interrupted.signum,
            state="stopped" if saved else "interrupted",
            **({"step": interrupted.step} if saved else {}),
            **({"why": interrupted.why} if interrupted.why else {}),
        )  # fmt: skip

    @staticmethod
    def _reason(
        stage: Stage, stage_dir: StageDir, ended: launch.Ended, logged: int, kills: int
    ) -> str:
        """Why a stage failed and what to do about it; empty if unknown."""
        if ended.hang:
            return ended.hang
        if stage_dir.not_finite.is_file():
            return str(read_json(stage_dir.not_finite, needs=("reason",))["reason"])
        short = memory.shortage(ended.returncode, tail(stage_dir.log, 200, since=logged), kills)
        if not short:
            return ""
        on_gpu = num_gpus() > 0
        peak = f"; peak memory {ended.memory}" if ended.memory else ""
        lower = memory.smaller(stage.kind, stage.config, on_gpu=on_gpu)
        return f"{short}{peak}. To use less memory, try {lower}"

    def _write_finish(self, stage: Stage, result: dict[str, Any], fields: dict[str, Any]) -> None:
        fail_point("before the finish line")
        facts = {k: v for k, v in result.items() if k not in NOT_IN_LEDGER}
        ledger.append(
            self.run.ledger, "finish", stage.name, kind=stage.kind, identity=digest(fields), **facts
        )

    def _recover_finish(self, stage: Stage, result: dict[str, Any], fields: dict[str, Any]) -> None:
        """Write the ledger line that is missing if a launcher was killed after its ranks ended."""
        finished = {e["stage"] for e in ledger.read(self.run.ledger) if e["event"] == "finish"}
        if stage.name not in finished:
            self._write_finish(stage, result, fields)

    def _input(self, role: str, given: str | ModelRef) -> dict[str, str]:
        if role == CONTAMINATION:
            assert isinstance(given, str)
            check = self.run.stage(given)
            return {"path": str(check.result), "sha256": check.read_result()["bits_sha256"]}
        if isinstance(given, str):
            name, _, snapshot = given.partition("@")
            made = self.run.stage(name)
            if snapshot:
                kept = made.snapshot(int(snapshot))
                return {"path": str(kept), "sha256": content_hash(kept)}
            digest_now = content_hash(made.model)
            check_made_model(made.model, digest_now)
            return {"path": str(made.model), "sha256": digest_now}
        assert given.folder is not None, "hub models are downloaded before the first stage starts"
        cache = self.run.root / "data" / "hashes.json"
        digest_now = content_hash(given.folder, cache)
        check_made_model(given.folder, digest_now)
        return {"path": str(given.folder), "sha256": digest_now}

    def _spec(
        self,
        stage: Stage,
        inputs: dict[str, dict[str, str]],
        data: dict[str, str],
        fields: dict[str, Any],
    ) -> dict[str, Any]:
        return {
            "stage": stage.name,
            "kind": stage.kind,
            "module": kind_of(stage.kind).module,
            "run_dir": str(self.run.root),
            "identity": digest(fields),
            "inputs": inputs,
            "chat": stage.chat,
            "data_sha256": data,
            "identity_fields": fields,
            "config": to_dict(stage.config),
            # Last: a file that was cut short lacks it.
            **made_by(),
        }
