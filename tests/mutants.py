"""Break objectives and training on purpose, a line at a time: tests must notice.

    python tests/mutants.py [WORD ...]

Each mutant is made in a copy of the checkout, where the tests that concern it are run; with words,
only those whose file or text has one of them. The exit code is 1 where fewer than 90% are killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
COPIED = ("pipelines", "remit_cli", "configs", "tests", "pyproject.toml")
WANTED = 0.9
FAR_TOO_LONG = 900

OBJECTIVES = ("tests/objectives",)
PARTS = ("tests/stages/test_training_parts.py",)
VALUES = ("tests/stages/test_values.py",)
PARITY = ("tests/stages/test_parity.py", "-k", "one_rank or chunks or scope_step")
STATE = ("tests/test_saved_state.py",)


@dataclass(frozen=True)
class Mutant:
    """A line of a module, what it becomes, and the arguments of pytest that must notice."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def in_file(file: str, tests: tuple[str, ...], *changes: tuple[str, str]) -> list[Mutant]:
    return [Mutant(f"pipelines/{file}.py", old, new, tests) for old, new in changes]


MUTANTS = [
    *in_file(
        "objectives/losses", OBJECTIVES,
        ("(weights * nll).sum()\n    return total", "nll.sum()\n    return total"),
        ("return total / _not_zero(divisor)", "return total"),
        ("share = mask.sum() / _not_zero(num_targets)", "share = 1.0"),
        ("(1.0 - alpha) * nll + alpha * kl", "alpha * nll + (1.0 - alpha) * kl"),
        ("torch.where(divisor == 0, torch.ones_like(divisor), divisor)", "divisor"),
    ),
    *in_file(
        "objectives/weights", OBJECTIVES,
        ("ref_logprobs.detach().float() - own", "own.float() - ref_logprobs"),
        ("logprobs.detach() if detach else logprobs", "logprobs"),
        ("clamp(1.0 - eps, 1.0 + eps)", "clamp(1.0 - eps, 2.0)"),
        ("clamp(1.0 - eps, 1.0 + eps)", "clamp(0.0, 1.0 + eps)"),
        ('d if center == "none" else d - _mean', 'd if center != "none" else d - _mean'),
        ("return 2.0 * centred.sigmoid()", "return 1.0 * centred.sigmoid() + 0.5"),
        ("return 1.0 + centred\n", "return 1.0 - centred\n"),
        ("1.0 + centred.tanh()", "1.0 + centred"),
        ("variance.clamp(min=1e-8).sqrt()", "variance.clamp(min=1e-8)"),
        ("weights.masked_fill(~targets, 0.0)", "weights"),
        ("math.ceil(round(k * int(targets.sum()), 6))", "math.ceil(k * int(targets.sum()))"),
        ("argsort(descending=True, stable=True)", "argsort(descending=False, stable=True)"),
        (".masked_fill(~targets, -math.inf)", ".masked_fill(~targets, 0.0)"),
        ("return -1", "return None"),
        ("(row * (int(documents.max()) + 1) + documents)", "(0 * row + documents)"),
        ("targets.sum(dim=group, keepdim=True).clamp(", "torch.tensor(len(targets)).clamp("),
    ),
    *in_file(
        "objectives/token_nll", OBJECTIVES,
        ("nll.masked_fill_(~targets, 0.0)", "nll.masked_fill_(~targets, 1.0)"),
        ("ref_logprobs.exp() * (ref", "logprobs.exp() * (ref"),
        ("grad.scatter_add_(1, wanted[rows], -nll_grad[rows, None])", "pass"),
        (".mul_(kl_grad[rows, None])", ".mul_(nll_grad[rows, None])"),
        ("total = nll_grad + kl_grad", "total = nll_grad"),
        ("self.weight[:num_tokens]\n", "self.weight\n"),
        ("bias_grad[: ctx.num_tokens] += grad.sum(0)", "bias_grad[: ctx.num_tokens] = grad.sum(0)"),
        ("size = max(1, chunk_bytes // (4 * row_floats))", "size = num_rows or 1"),
    ),
    *in_file(
        "objectives/selection", OBJECTIVES,
        ("np.argsort(-scores", "np.argsort(scores"),
        ("return np.sort(best)", "return best"),
        ("/ max(1, num_targets)", "/ 1"),
        ("logprobs.sum(dtype=np.float64) - small", "-logprobs.sum(dtype=np.float64) + small"),
    ),
    *in_file(
        "objectives/objective", OBJECTIVES,
        ("self.keep * num_targets", "num_targets"),
        ("eps=remit.eps", "eps=0.2"),
        ("k=self.keep", "k=0.6"),
    ),
    *in_file(
        "recipe/schema/objectives", OBJECTIVES,
        ('"rho1", reads="logprobs", weights_tokens=True', '"rho1", reads="logprobs"'),
        ('"kd", reads="distribution"', '"kd", reads="logprobs"'),
    ),
    *in_file(
        "training/mid_trainer", PARTS,
        ("square / count - (offset / count) ** 2", "square / count"),
        ("weights <= low", "weights < low"),
        ("mask & (weights >= high)", "mask & (weights > high)"),
        ("default_rng([self.seed, self.num_sequences])", "default_rng([0, self.num_sequences])"),
        ("order[self.begin() :]", "order[:]"),
    ),
    *in_file(
        "training/mid_trainer", PARITY,
        ("loss = loss * self.args.world_size", "loss = loss * 1.0"),
        ("own = slice(self.args.process_index * rows, (self.args.process_index + 1) * rows)",
         "own = slice(0, rows)"),
        ("self.step_divisor = float(weights.sum())", "self.step_divisor = float(targets.sum())"),
    ),
    *in_file(
        "training/engine", PARTS,
        ('"gradient_clipping": train.max_grad_norm', '"gradient_clipping": 1.0'),
        ('"bf16": {"enabled": train.dtype == "bf16"}', '"bf16": {"enabled": False}'),
        ("train.global_batch_size // (micro * world_size)", "train.global_batch_size // micro"),
    ),
    *in_file(
        "training/engine", VALUES,
        ("adam_beta1=train.adam_beta1", "adam_beta1=0.9"),
        ("adam_beta2=train.adam_beta2", "adam_beta2=0.999"),
        ("weight_decay=train.weight_decay", "weight_decay=0.0"),
        ("lr_scheduler_type=schedule", 'lr_scheduler_type="cosine"'),
        ("warmup_steps=round(train.warmup_ratio * steps)", "warmup_steps=0"),
    ),
    *in_file(
        "models/loading", VALUES,
        ("attn_implementation=config.model.attn_implementation", 'attn_implementation="sdpa"'),
    ),
    *in_file(
        "training/facts", PARTS,
        ("values[-1]} if values", "values[0]} if values"),
        ("rates[len(rates) // 2]", "rates[0]"),
        ("end - begin for begin, end", "1 for begin, end"),
    ),
    *in_file(
        "training/callbacks", PARTS,
        ("number * state.max_steps / (self.count + 1)", "number * state.max_steps / self.count"),
        ("not isinstance(value, bool)", "True"),
        ("else str(v)", "else v"),
    ),
    *in_file(
        "training/callbacks", STATE,
        ("and file_sha256(folder / name) == digest", ""),
        ("for folder in reversed(resume_state.complete", "for folder in (resume_state.complete"),
    ),
    *in_file(
        "training/step_boundary", PARTS,
        ("every // math.gcd(every, trainer.args.gradient_accumulation_steps)", "every"),
    ),
    *in_file(
        "training/finite_guard", PARTS,
        ("row.pop(ROW) for row in batch", "row[ROW] for row in batch"),
    ),
    *in_file(
        "stages/sft", VALUES,
        ("completion_only_loss=True", "completion_only_loss=False"),
    ),
    *in_file(
        "stages/dpo", VALUES,
        ('"chosen": assistant(p.chosen)', '"chosen": assistant(p.rejected)'),
        ('"rejected": assistant(p.rejected)', '"rejected": assistant(p.chosen)'),
    ),
]  # fmt: skip


def make_copy(folder: Path) -> Path:
    """The checkout in a folder, with a virtual environment that imports that copy; its Python."""
    for name in COPIED:
        source = CHECKOUT / name
        ignored = shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (own,) = venv.glob("lib/python*/site-packages")
    (own / "copy.pth").write_text("".join(f"{path}\n" for path in [str(folder), *packages]))
    # Of another ninja DeepSpeed's op would be built again.
    ninja = shutil.which("ninja", path=str(Path(sys.executable).parent))
    if ninja:
        (venv / "bin" / "ninja").symlink_to(ninja)
    built = Path(sys.prefix) / "torch_extensions"
    if built.is_dir():
        shutil.copytree(built, venv / "torch_extensions")
    return venv / "bin" / "python"


def is_killed(mutant: Mutant, folder: Path, python: Path) -> bool:
    """Whether a test fails with the mutant in the copy."""
    path = folder / mutant.file
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        done = subprocess.run(
            [str(python), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests],
            cwd=folder, capture_output=True, text=True, timeout=FAR_TOO_LONG, check=False,
            env=os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": str(folder / ".hypothesis")},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(text)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutant}: pytest did not run its tests:\n{done.stdout[-2000:]}")
    return done.returncode == 1


def main() -> None:
    wanted = [m for m in MUTANTS if not sys.argv[1:] or any(w in str(m) for w in sys.argv[1:])]
    for mutant in MUTANTS:
        count = (CHECKOUT / mutant.file).read_text().count(mutant.old)
        if count != 1:
            raise SystemExit(f"{mutant.file} has {count} times {mutant.old!r}: mend this mutant")
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = make_copy(folder)
        for tests in dict.fromkeys(mutant.tests for mutant in wanted):
            unbroken = Mutant("pipelines/errors.py", "", "", tests)
            if is_killed(unbroken, folder, python):
                raise SystemExit(f"{' '.join(tests)} fails without a mutant")
        for mutant in wanted:
            started = time.monotonic()
            killed = is_killed(mutant, folder, python)
            if not killed:
                survivors.append(mutant)
            seconds = time.monotonic() - started
            print(f"{'killed  ' if killed else 'SURVIVED'} {seconds:4.0f} s  {mutant.file}: "
                  f"{mutant.old!r} -> {mutant.new!r}", flush=True)  # fmt: skip
    killed_share = 1 - len(survivors) / len(wanted)
    print(f"{len(wanted) - len(survivors)} of {len(wanted)} mutants killed ({killed_share:.0%})")
    sys.exit(killed_share < WANTED)


if __name__ == "__main__":
    main()
