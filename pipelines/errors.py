"""Exceptions for the ways a run can end early: the user's mistake, a failed stage, a signal."""

import difflib
import signal
from collections.abc import Iterable

# Exit code of a worker that got wrong input; DeepSpeed's launcher passes it on.
WRONG_INPUT_CODE = 78


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Ends a sentence about an unknown name: `. Did you mean 'steps'?`, or a full stop.

    OmegaConf also makes suggestions, but not for a key inside a section.
    """
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f". Did you mean '{close[0]}'?" if close else "."


class UserError(ValueError):
    """Wrong input: shown as one paragraph without a traceback, exit code 2.

    The message says what is wrong, where, and how to fix it.
    """


class DamagedFile(UserError):
    """A file of a run or of a model is corrupt: it cannot be parsed, or its checksum differs."""


class StageFailed(RuntimeError):
    """The process of a stage ended with an error: exit code 1.

    Attributes:
        stage: name of the stage, as in the ledger.
        log_path: the log of the stage.
        last_lines: the end of that log.
        reason: what went wrong and what to do about it, if known; else empty.
    """

    def __init__(
        self, stage: str, log_path: str, last_lines: str, returncode: int, reason: str = ""
    ) -> None:
        how = reason or f"exit code {returncode}"
        super().__init__(f"stage {stage} failed ({how}); its log: {log_path}")
        self.stage = stage
        self.log_path = log_path
        self.last_lines = last_lines
        self.returncode = returncode
        self.reason = reason


class Interrupted(BaseException):
    """A signal, or the end of the job's time, ended the command: exit code 130 or 143.

    Not a subclass of `Exception`, for the same reason as KeyboardInterrupt: it can arrive inside a
    library that catches exceptions and continues, or raises another error instead.

    Attributes:
        signum: the signal; SIGTERM at the end of the job's time.
        step: the optimizer step that was saved; None if nothing was saved.
        why: the cause if no signal came, such as the end of the job's time; else empty.
    """

    def __init__(self, signum: int, step: int | None = None, why: str = "") -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum
        self.step = step
        self.why = why

    @property
    def exit_code(self) -> int:
        """130 for SIGINT; 143 for all others. SLURM scripts requeue the job on 143."""
        return 128 + (signal.SIGINT if self.signum == signal.SIGINT else signal.SIGTERM)


class Stopped(Exception):
    """Raised in every rank of a stage that was asked to stop, once its checkpoint is complete.

    Attributes:
        signum: the signal that asked for it.
        step: the optimizer step of the checkpoint.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by signal {signum} after step {step}")
        self.signum = signum
        self.step = step
