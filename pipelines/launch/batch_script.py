"""Write SLURM batch scripts for the user to read, edit and submit. Nothing is started here."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.recipe.schema import SlurmConfig
from pipelines.run_dir.paths import write_text

CORES_PER_RANK = 8
# The script exits with the code of remit. 143 after SIGUSR1, or after a stop before the time limit,
# means: requeue the job. After SIGTERM, SLURM requeues a preempted job itself, and a cancelled job
# must stay cancelled.
BODY = """\
# Before the time limit SLURM sends SIGUSR1 to this shell, which passes it on to remit. remit lets
# its ranks save and exits with code 143. The same command resumes from there.
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
# A signal that arrives as remit ends hides its exit code from the first wait.
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
    """A SLURM job: its name for people, command line, number of nodes and ranks per node."""

    name: str
    command: list[str]
    nodes: int
    gpus: int
    slurm: SlurmConfig

    @property
    def label(self) -> str:
        """The name without characters that are special in a directive, a pattern or a path."""
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.name)

    @property
    def file_name(self) -> str:
        return f"{self.label}.sbatch"


def script(job: Job, folder: Path, cwd: Path) -> str:
    """The text of a job's script, which is in `folder` and runs in `cwd`.

    Raises:
        UserError: a value contains a line break, which would end its directive.
    """
    slurm = job.slurm
    gpus = f"{slurm.gpu_type}:{job.gpus}" if slurm.gpu_type else job.gpus
    values = {
        "job-name": job.label,
        "nodes": job.nodes,
        # One task: remit starts the ranks itself, through srun if there are multiple nodes.
        "ntasks-per-node": 1,
        "cpus-per-task": slurm.cpus_per_node or CORES_PER_RANK * job.gpus,
        "gpus-per-node": None if slurm.gpu_type == "none" else gpus,
        "time": slurm.time,
        "partition": slurm.partition or None,
        "account": slurm.account or None,
        "output": shlex.quote(str(folder).replace("%", "%%") + "/%x-%j.out"),
        "open-mode": "append",
        "signal": f"B:USR1@{slurm.signal_seconds}",
    }
    options = [f"--{name}={value}" for name, value in values.items() if value is not None]
    options += ["--requeue" if slurm.requeue else "--no-requeue", *slurm.lines]
    if any("\n" in option for option in options):
        raise UserError(
            "launch.slurm: a value contains a line break, which an #SBATCH line cannot hold."
        )
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


def submission(jobs: list[Job], folder: Path) -> str:
    """A script that submits jobs in order; each starts after the one before has succeeded."""
    about = "# Submits the jobs; each starts after the one before has succeeded."
    lines, after = ["#!/bin/bash", about, "set -eu", ""], ""
    for job in jobs:
        path = shlex.quote(str(folder / job.file_name))
        lines.append(f"job=$(sbatch --parsable{after} {path})")
        lines += ["job=${job%%;*}", f'echo "$job" {shlex.quote(job.name)}']
        after = ' --dependency=afterok:"$job" --kill-on-invalid-dep=yes'
    return "\n".join(lines) + "\n"


def write_scripts(jobs: list[Job], folder: Path, cwd: Path, chain: bool) -> list[Path]:
    """Write the scripts of jobs, and `submit.sh` if they are a chain.

    Raises:
        UserError: a script already exists with other content, and may have been edited.
    """
    texts = {folder / job.file_name: script(job, folder, cwd) for job in jobs}
    if chain:
        texts[folder / "submit.sh"] = submission(jobs, folder)
    for path, text in texts.items():
        if path.exists() and path.read_text() != text:
            raise UserError(
                f"{path} already exists with other content; it may have been edited. Remove it, or "
                "choose another folder with --output."
            )
    for path, text in texts.items():
        write_text(path, text, mode=0o755)
    return list(texts)
