"""Batch scripts of SLURM to read and edit; nothing here starts anything."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.recipe.schema import SlurmConfig
from pipelines.run_dir.paths import write_text

CORES_PER_RANK = 8
# Ends with the exit code of remit. 143 after SIGUSR1 (or stopped before the time limit): queue the
# job again. After SIGTERM, a preemption queues it itself, and a cancelled one is to stay so.
BODY = """\
# SIGUSR1 comes to this shell before the time limit and is handed on to remit alone, which has its
# ranks save, and ends with exit code 143. The same line then goes on from there.
ended_by_others=
trap 'kill -USR1 "$remit" 2>/dev/null' USR1
trap 'ended_by_others=yes; kill -TERM "$remit" 2>/dev/null' TERM
{command} &
remit=$!
while true; do
    wait "$remit"
    code=$?
    kill -0 "$remit" 2>/dev/null || break
done
# A signal that came with the end of remit hides its exit code from the first wait.
wait "$remit" 2>/dev/null
last=$?
[ "$last" -eq 127 ] || code=$last
"""
REQUEUE = """\
if [ "$code" -eq 143 ] && [ -z "$ended_by_others" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
"""


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        name: in words; `label` is what SLURM and the script's file are given.
        command: what it runs.
        nodes, gpus: machines, and ranks on each.
        slurm: limits and extras.
    """

    name: str
    command: list[str]
    nodes: int
    gpus: int
    slurm: SlurmConfig

    @property
    def label(self) -> str:
        """The name without what a directive, a pattern or a path would read otherwise."""
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.name)

    @property
    def file_name(self) -> str:
        return f"{self.label}.sbatch"


def script(job: Job, folder: Path, cwd: Path) -> str:
    """The text of a job's script.

    Args:
        folder: where script and logs lie.
        cwd: where the command runs.

    Raises:
        UserError: a line break in a value, which would end its directive.
    """
    slurm = job.slurm
    options = [
        f"--job-name={job.label}",
        f"--nodes={job.nodes}",
        # One task: remit, which starts the ranks itself, on other machines through srun.
        "--ntasks-per-node=1",
        f"--cpus-per-task={slurm.cpus_per_node or CORES_PER_RANK * job.gpus}",
        *_gpu_options(job),
        f"--time={slurm.time}",
        *([f"--partition={slurm.partition}"] if slurm.partition else []),
        *([f"--account={slurm.account}"] if slurm.account else []),
        f"--output={shlex.quote(str(folder).replace('%', '%%') + '/%x-%j.out')}",
        "--open-mode=append",
        f"--signal=B:USR1@{slurm.signal_seconds}",
        "--requeue" if slurm.requeue else "--no-requeue",
        *slurm.lines,
    ]
    if any("\n" in option for option in options):
        raise UserError("launch.slurm: a value has a line break, which no #SBATCH line can have.")
    head = [
        "#!/bin/bash",
        f"# Read it, edit it, then: sbatch {shlex.quote(str(folder / job.file_name))}",
        *(f"#SBATCH {option}" for option in options),
        "",
        f"cd {shlex.quote(str(cwd))} || exit 1",
        *slurm.setup,
        "",
    ]
    body = BODY.format(command=shlex.join(job.command))
    return "\n".join(head) + body + (REQUEUE if slurm.requeue else "") + 'exit "$code"\n'


def _gpu_options(job: Job) -> list[str]:
    kind = job.slurm.gpu_type
    if kind == "none":
        return []
    return [f"--gpus-per-node={kind + ':' if kind else ''}{job.gpus}"]


def submission(jobs: list[Job], folder: Path) -> str:
    """A script that submits jobs in order, each after the one before it has ended well."""
    lines = ["#!/bin/bash", "# Submits the jobs; each waits until the one before has ended well."]
    lines += ["set -eu", ""]
    for number, job in enumerate(jobs):
        after = ' --dependency=afterok:"$job" --kill-on-invalid-dep=yes' if number else ""
        path = shlex.quote(str(folder / job.file_name))
        lines.append(f"job=$(sbatch --parsable{after} {path})")
        lines += ["job=${job%%;*}", f'echo "$job" {shlex.quote(job.name)}']
    return "\n".join(lines) + "\n"


def write_scripts(jobs: list[Job], folder: Path, cwd: Path, chain: bool) -> list[Path]:
    """Write the scripts of jobs, and `submit.sh` where they are a chain.

    Raises:
        UserError: a script is there already and says something else: it may have been edited.
    """
    texts = {folder / job.file_name: script(job, folder, cwd) for job in jobs}
    if chain:
        texts[folder / "submit.sh"] = submission(jobs, folder)
    for path, text in texts.items():
        if path.exists() and path.read_text() != text:
            raise UserError(
                f"{path} is there and says something else; it may have been edited. Remove it, or "
                "choose another folder with --output."
            )
    for path, text in texts.items():
        write_text(path, text, mode=0o755)
    return list(texts)
