"""Speed of whole stages as ratios to their bare parts: `make bench`. No test collects it.

    python tests/bench_stages.py [pairs]        scoring, steps, ranks, start-up
    python tests/bench_stages.py offsets [tokens]   steps and resume far into a packed file

Each part runs a real stage through the CLI and is measured in a process with that stage's
environment, in interleaved pairs.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from pipelines.evals.intervals import mean_interval
from pipelines.machine.process import free_port
from pipelines.models.loading import load_scorer
from pipelines.models.tokenizer import load_tokenizer
from pipelines.plan.placement import environment
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir.job import StageJob
from pipelines.run_dir.markers import write_marker
from pipelines.run_dir.paths import StageDir
from pipelines.stages import mid_train
from pipelines.training import engine
from pipelines.training.packed_data import packed
from pipelines.training.scoring import score
from pipelines.worker.worker import read_job

REMIT = [sys.executable, "-m", "remit_cli"]
STEPS = 100
BLOCK = 20
BATCH = 64
SAVED_AT = 5
FAR_STEPS = 200
# What the CLI's process and the rank of a mid-training import, DeepSpeed's optimizer included.
IMPORTS = (
    "import typer, rich.live, omegaconf, datasets; import torch, deepspeed, transformers.trainer; "
    "import transformers.models.llama.modeling_llama, deepspeed.runtime.zero.stage_1_and_2"
)


def ratio(title: str, aim: str, ours: list[float], theirs: list[float]) -> None:
    """Print the mean of ours / theirs with its 95% interval."""
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    mean, half = mean_interval(logs)
    around = (
        "" if half is None else f" ({math.exp(mean - half):.3f} to {math.exp(mean + half):.3f})"
    )
    print(f"{title} (aim {aim}): {math.exp(mean):.3f}{around}", flush=True)


def remit(run: Path, command: str, *args: str) -> None:
    subprocess.run([*REMIT, command, "--run-dir", str(run), *args], check=True, capture_output=True)


def mid_training(run: Path, name: str, tokens: int, *args: str) -> Path:
    """A plain mid-training of the world's model; its stage folder."""
    remit(run, "mid-train", "--base", str(run / "base"), f"stage.name={name}",
          f"mid_train.tokens={tokens}", "mid_train.save_seconds=0", *args)  # fmt: skip
    return run / f"mid-train-{name}"


def in_stage_environment(*args: str) -> str:
    """What this file prints in the environment of a stage of one rank and one thread."""
    launch = LaunchConfig(env={"OMP_NUM_THREADS": "1"})
    env = environment(launch, free_port(), offline=True)
    command = [sys.executable, __file__, *args]
    return subprocess.run(command, check=True, env=env, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def training_replaced(train: Callable[..., None]) -> Iterator[None]:
    """The stage's own set-up, with another function in the place of the training."""
    original, engine.train = engine.train, train
    try:
        yield
    finally:
        engine.train = original


def again(stage: Path) -> StageJob:
    """The job of a stage that ran, with a folder of its own to run in once more."""
    job = read_job(StageDir(stage))
    copy = stage.with_name(f"{stage.name}-again")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    return StageJob(**{**vars(job), "stage_dir": StageDir(copy)})


class BarePairs(TrainerCallback):
    """After every block of steps, as many bare steps of the same engine, on batches in memory.

    Attributes:
        ours, bare: seconds of each block, the first one left out.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.ours: list[float] = []
        self.bare: list[float] = []
        loader = trainer.get_train_dataloader()
        self.batches = [trainer._prepare_inputs(batch) for batch in islice(loader, BLOCK)]
        self.began = time.perf_counter()

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step % BLOCK:
            return
        self.ours.append(seconds_since(self.began))
        start = time.perf_counter()
        deepspeed_engine = self.trainer.model_wrapped
        for batch in self.batches:
            nll = deepspeed_engine(**{k: v for k, v in batch.items() if k != "labels"})["nll"]
            deepspeed_engine.backward(nll.sum() / nll.numel())
            deepspeed_engine.step()
        self.bare.append(seconds_since(start))
        self.began = time.perf_counter()


def bench_steps(stage: Path) -> None:
    """The training loop of a stage, data, logging and metrics included, and its bare steps."""

    def train(trainer: Any, stage_dir: StageDir, settings: Any) -> None:
        pairs = BarePairs(trainer)
        trainer.add_callback(pairs)
        engine_train(trainer, stage_dir, settings)
        title = "mid-train stage / its bare steps, tokens per second"
        ratio(title, ">= 0.97", pairs.bare[1:], pairs.ours[1:])

    engine_train = engine.train
    with training_replaced(train):
        mid_train.run(again(stage))


def bench_scoring(stage: Path, pairs: int) -> None:
    """Scoring a packed set, and forwards of the bare model on the same batches in memory."""
    job = read_job(StageDir(stage))
    tokenizer = load_tokenizer(job.inputs["base"])
    dataset = packed(job, "mid_train", job.config.mid_train, tokenizer)
    scorer = load_scorer(job.inputs["base"], job.config, len(tokenizer))
    bare = AutoModelForCausalLM.from_pretrained(job.inputs["base"], dtype=torch.float32).eval()
    rows = range(min(len(dataset), 10 * BATCH))
    batches = [
        dataset.collate([dataset[i] for i in rows[start : start + BATCH]])
        for start in range(0, len(rows), BATCH)
    ]

    def forwards() -> None:
        with torch.inference_mode():
            for batch in batches:
                bare(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)

    ours, theirs = [], []
    for _ in range(pairs + 1):
        ours.append(seconds(lambda: score(scorer, dataset, rows, BATCH)))
        theirs.append(seconds(forwards))
    ratio("scoring / bare forward, tokens per second", ">= 0.95", theirs[1:], ours[1:])


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return seconds_since(start)


def seconds_since(start: float) -> float:
    return time.perf_counter() - start


def bench_start(run: Path, pairs: int) -> None:
    """From the command to the end of its first step, and a process that only imports."""
    ours, bare = [], []
    env = environment(LaunchConfig(), free_port(), offline=True)
    for number in range(pairs + 1):
        stage = run / f"mid-train-start{number}"
        command = [
            *REMIT, "mid-train", "--run-dir", str(run), "--base", str(run / "base"),
            f"stage.name=start{number}", "mid_train.tokens=100_000", "mid_train.logging_steps=1",
        ]  # fmt: skip
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        metrics = stage / "metrics.jsonl"
        while not (metrics.is_file() and "loss" in metrics.read_text()):
            time.sleep(0.01)
        ours.append(time.perf_counter() - start)
        process.communicate()
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True, env=env)
        bare.append(seconds_since(start))
    ratio("command to first step / bare import", "<= 1.3", ours[1:], bare[1:])
    print(f"  {ours[-1]:.1f} s and {bare[-1]:.1f} s in the last pair")


def bench_ranks(run: Path, pairs: int) -> None:
    """Two ranks of one thread, and one rank of two threads."""

    def rate(name: str, gpus: int) -> float:
        stage = mid_training(run, name, 2048 * STEPS, "--gpus", str(gpus))
        return float(json.loads((stage / "result.json").read_text())["tokens_per_second"])

    found = [(rate(f"two{i}", 2), rate(f"one{i}", 1)) for i in range(max(2, pairs // 2))]
    two, one = (list(rates) for rates in zip(*found, strict=True))
    ratio("2 processes / 1 process of 2 threads, tokens per second", ">= 0.9", two, one)


class Clock(TrainerCallback):
    """When each step ended, in CPU seconds: runs that are minutes apart meet other neighbours."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended.append(time.process_time())


def measure_offsets(stage: Path, steps: list[int]) -> None:
    """In one process: resume after each of `steps` and train on; prints seconds and rates.

    The first of them is resumed once before, since the first training of a process is slower.
    """
    measured: list[tuple[float, float]] = []
    coming = iter((steps[0], *steps))

    def train(trainer: Any, stage_dir: StageDir, settings: Any) -> None:
        step, clock = next(coming), Clock()
        trainer.add_callback(clock)
        trainer.args.max_steps = step + FAR_STEPS
        _checkpoint_after(step, stage, stage_dir)
        start = time.process_time()
        engine_train(trainer, stage_dir, replace(settings, save_steps=0))
        rate = (len(clock.ended) - 1) / (clock.ended[-1] - clock.ended[0])
        measured.append((clock.ended[0] - start, rate))

    engine_train = engine.train
    with training_replaced(train):
        for _ in range(1 + len(steps)):
            mid_train.run(again(stage))
    print(json.dumps(measured[1:]))


def _checkpoint_after(step: int, stage: Path, stage_dir: StageDir) -> None:
    """The checkpoint of a few steps, which says that it was made after `step`."""
    moved = stage_dir.checkpoints / f"checkpoint-{step}"
    shutil.copytree(stage / "checkpoints" / f"checkpoint-{SAVED_AT}", moved)
    state = moved / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"global_step": step}))
    marker = moved / "complete.json"
    facts = json.loads(marker.read_text())
    del facts["checksum"], facts["files"][state.name]
    write_marker(marker, facts | {"step": step})


def bench_offsets(run: Path, tokens: int, repeats: int = 12) -> None:
    """Steps from several positions of one packed file, after a resume to each of them."""
    stage = run / "mid-train-far"
    saved = stage / "checkpoints" / f"checkpoint-{SAVED_AT}" / "complete.json"
    process = subprocess.Popen(
        [*REMIT, "mid-train", "--run-dir", str(run), "--base", str(run / "base"),
         "stage.name=far", f"mid_train.tokens={tokens}",
         f"mid_train.save_steps={SAVED_AT}", "mid_train.save_seconds=0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not saved.is_file():
        time.sleep(0.1)
    process.terminate()
    process.wait()
    offsets = [n for n in (0, 10**6, 10**7, 10**8) if n + FAR_STEPS * 2048 <= tokens]
    waits: dict[int, list[float]] = {offset: [] for offset in offsets}
    rates: dict[int, list[float]] = {offset: [] for offset in offsets}
    for repeat in range(repeats):
        # Each position comes first, second, ... equally often.
        turn = repeat % len(offsets)
        order = [*offsets[turn:], *offsets[:turn]]
        steps = [str(max(SAVED_AT, offset // 2048)) for offset in order]
        printed = in_stage_environment("offset", str(stage), *steps).splitlines()[-1]
        for offset, (wait, rate) in zip(order, json.loads(printed), strict=True):
            waits[offset].append(wait)
            rates[offset].append(rate)
    for offset in offsets[1:]:
        ratio(f"steps at {offset:,} tokens / first steps", "0.97 to 1.03", rates[offset], rates[0])
        ratio(f"resume at {offset:,} tokens / at the start", "1.03", waits[offset], waits[0])
    print(f"  a resume takes {sum(waits[0]) / repeats:.2f} CPU seconds")


def main() -> None:
    if sys.argv[1:2] == ["steps"]:
        bench_steps(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["scoring"]:
        bench_scoring(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["offset"]:
        measure_offsets(Path(sys.argv[2]), [int(step) for step in sys.argv[3:]])
    else:
        os.chdir(Path(__file__).parent.parent)
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            remit(run, "pretrain-ckpt", "pretrain.tokens=40_000")
            if sys.argv[1:2] == ["offsets"]:
                bench_offsets(run, int(sys.argv[2]) if len(sys.argv) > 2 else 101_000_000)
            else:
                bench_stage(run, int(sys.argv[1]) if len(sys.argv) > 1 else 10)


def bench_stage(run: Path, pairs: int) -> None:
    stage = mid_training(run, "bench", 2048 * BLOCK * (pairs + 1))
    for part in ("steps", "scoring"):
        print(in_stage_environment(part, str(stage), str(pairs)).splitlines()[-1], flush=True)
    bench_ranks(run, pairs)
    bench_start(run, max(3, pairs // 2))


if __name__ == "__main__":
    main()
