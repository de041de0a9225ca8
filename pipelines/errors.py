"""The two ways a run can end badly: the user's mistake and a failed stage."""

# Exit code of a worker that met wrong input; DeepSpeed's launcher passes it on.
WRONG_INPUT_CODE = 78


class UserError(ValueError):
    """Wrong input: shown as one paragraph without a traceback, exit code 2.

    The message says what is wrong, where, and how to mend it.
    """


class DamagedFile(UserError):
    """A file that remit or a model's maker wrote cannot be read as what it is."""


class StageFailed(RuntimeError):
    """A stage's process ended with an error: exit code 1.

    Attributes:
        stage: name of the stage, as in the ledger.
        log_path: the log of the stage.
        last_lines: the end of that log.
    """

    def __init__(self, stage: str, log_path: str, last_lines: str, returncode: int) -> None:
        super().__init__(f"stage {stage} failed (exit code {returncode}); its log: {log_path}")
        self.stage = stage
        self.log_path = log_path
        self.last_lines = last_lines
        self.returncode = returncode


class Interrupted(RuntimeError):
    """SIGINT or SIGTERM reached the command: exit code 130 or 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum
