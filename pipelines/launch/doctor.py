"""`remit doctor`: check whether this machine has what training needs.

torch and DeepSpeed are imported in a separate process, which may fail or hang without harm here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.machine import slurm
from pipelines.machine.process import cpp_compiler, free_port, num_cores, num_gpus
from pipelines.plan.placement import environment
from pipelines.recipe.schema import LaunchConfig
from pipelines.rewards import sandbox
from pipelines.run_dir.disk import free_bytes

State = Literal["ok", "warning", "missing"]
OLDEST_PYTHON = (3, 11)
LITTLE_DISK_BYTES = 20e9
HUB_SECONDS = 3.0
IMPORT_SECONDS = 120.0
INSTALL = "install it: make install"
# Optional packages and the features that need them.
EXTRAS = {
    "lm_eval": "benchmarks (pip install 'remit-flywheel[eval]')",
    "vllm": "rlvr.use_vllm=true (pip install 'remit-flywheel[vllm]')",
    "flash_attn": "model.attn_implementation=flash_attention_2",
}
# Run by the interpreter of the ranks. The op is the one that DeepSpeed compiles at a start on CPU.
PROBE = """
import json, sys
import torch
found = {"torch": torch.__version__, "built_for": torch.version.cuda or "",
         "cuda": torch.cuda.is_available()}
found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps(found), flush=True)
import os
import deepspeed
from deepspeed.accelerator import get_accelerator
builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
op = ""
if builder is not None and builder.__class__.__name__ != "NotImplementedBuilder":
    folder = os.path.join(os.environ.get("TORCH_EXTENSIONS_DIR", ""), builder.name)
    op = "built" if os.path.isfile(os.path.join(folder, builder.name + ".so")) else "not built"
print(json.dumps({"deepspeed": deepspeed.__version__, "op": op}), flush=True)
"""


@dataclass(frozen=True)
class Check:
    """The result of one check: what was found, and what to do about it (empty if nothing).

    The state is `missing` if training cannot run without it.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def examine(run_dir: Path) -> list[Check]:
    """Run all checks. They leave no files behind."""
    return [
        python(), *libraries(), compiler(), disk(run_dir), port(), hub(), data_folder(),
        code_sandbox(), *extras(), cluster(),
    ]  # fmt: skip


def python() -> Check:
    found = sys.version.split()[0]
    if sys.version_info < OLDEST_PYTHON:
        return Check("Python", "missing", found, "install Python 3.11 or later")
    return Check("Python", "ok", f"{found}, {num_cores()} cores")


def libraries() -> list[Check]:
    """Check torch, the GPUs that it sees, DeepSpeed and its op."""
    env = environment(LaunchConfig(), 1, offline=False)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, env=env, check=False,
            timeout=IMPORT_SECONDS,
        )  # fmt: skip
        output, error = done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        output, error = "", f"importing it took more than {IMPORT_SECONDS:.0f} s"
    facts: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            facts |= json.loads(line)
    why = error.strip().splitlines()[-1] if error.strip() else "it printed nothing"
    torch = Check("torch", "missing", why, INSTALL)
    if "torch" in facts:
        built = f"CUDA {facts['built_for']}" if facts["built_for"] else "CPU"
        torch = Check("torch", "ok", f"{facts['torch']}, built for {built}")
    checks = [torch, _gpus(facts.get("gpus", []))]
    if "deepspeed" not in facts:
        return [*checks, Check("DeepSpeed", "missing", why, INSTALL)]
    checks.append(Check("DeepSpeed", "ok", facts["deepspeed"]))
    if facts["op"] == "not built" and not num_gpus():
        advice = "make prebuild builds it; else the first start on CPU takes a minute or two longer"
        checks.append(Check("DeepSpeed's op", "warning", "not built", advice))
    elif facts["op"]:
        checks.append(Check("DeepSpeed's op", "ok", facts["op"]))
    return checks


def _gpus(seen: list[str]) -> Check:
    if seen:
        return Check("GPUs", "ok", f"{len(seen)} x {seen[0]}")
    if listed := num_gpus():
        return Check(
            "GPUs", "missing", f"nvidia-smi lists {listed}, torch sees none",
            "install a torch for the driver's CUDA, or set CUDA_VISIBLE_DEVICES= to train on CPU",
        )  # fmt: skip
    return Check("GPUs", "warning", "none", "training runs on CPU: for small models only")


def compiler() -> Check:
    if found := cpp_compiler():
        return Check("C++ compiler", "ok", found)
    advice = "install one (apt-get install g++), or set CXX to its path"
    return Check("C++ compiler", "warning" if num_gpus() else "missing", "none", advice)


def disk(run_dir: Path) -> Check:
    """Check that the run directory, or the folder it will be in, is writable and has space."""
    folder = run_dir.resolve()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        advice = "choose another folder with --run-dir"
        return Check("disk", "missing", f"{folder} cannot be written", advice)
    free = free_bytes(folder)
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if free < LITTLE_DISK_BYTES:
        return Check("disk", "warning", found, "remit plan shows how much a flywheel needs")
    return Check("disk", "ok", found)


def port() -> Check:
    try:
        found = free_port()
        with socket.create_server(("127.0.0.1", found)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        advice = "ranks connect over TCP: allow it on the loopback interface (ip link set lo up)"
        return Check("ports", "missing", str(error), advice)
    return Check("ports", "ok", f"{found} is free on 127.0.0.1")


def hub() -> Check:
    """Check that the model hub answers. Local inputs do not need it."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return Check("hub", "ok", "not checked: HF_HUB_OFFLINE is set")
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(address, timeout=HUB_SECONDS):
            return Check("hub", "ok", f"{address} answers")
    except urllib.error.HTTPError as error:
        return Check("hub", "ok", f"{address} answers ({error.code})")
    except (OSError, ValueError) as error:
        advice = "download on a machine with network, give local folders, and set HF_HUB_OFFLINE=1"
        return Check("hub", "warning", f"{address} does not answer: {error}", advice)


def data_folder() -> Check:
    given = os.environ.get("REMIT_DATA", "")
    folder = Path(given).expanduser()
    found, advice = f"{given} is not a folder", "set it to the folder of the data"
    if not given:
        found = "not set"
        advice = (
            "export REMIT_DATA=FOLDER for recipes on real text; the built-in world needs no data"
        )
    elif folder.is_dir():
        return Check("REMIT_DATA", "ok", f"{given}, {sum(1 for _ in folder.iterdir())} entries")
    return Check("REMIT_DATA", "warning", found, advice)


def code_sandbox() -> Check:
    if reason := sandbox.unavailable():
        advice = "code rewards and benchmarks will be refused; docs/guides/evaluation.md says why"
        return Check("sandbox", "warning", reason, advice)
    return Check("sandbox", "ok", "generated programs can run in it")


def extras() -> list[Check]:
    return [
        Check(name, "ok", "installed")
        if importlib.util.find_spec(name)
        else Check(name, "warning", "not installed", f"only needed for {use}")
        for name, use in EXTRAS.items()
    ]


def cluster() -> Check:
    found = "not found (optional)"
    if slurm.in_job():
        found = f"job {os.environ['SLURM_JOB_ID']}, {slurm.num_nodes()} nodes"
        if slurm.num_nodes() > 1 and shutil.which("srun") is None:
            found += ", srun is not on the PATH"
            return Check("SLURM", "missing", found, "add its folder to PATH")
    elif shutil.which("sbatch"):
        found = "sbatch found; remit launch --slurm writes scripts for it"
    return Check("SLURM", "ok", found)
