"""`python -m remit_cli` and the entry point. Signal handlers are set before the slow imports."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `remit` command."""
    import pipelines

    if not hasattr(pipelines, "__version__"):
        sys.exit(
            f"remit: another package named 'pipelines' was imported ({pipelines.__path__}). "
            "Install remit in a separate virtual environment."
        )
    from pipelines.errors import Interrupted
    from pipelines.machine.signals import ignore_signals, signals_raise

    try:
        with signals_raise():
            from remit_cli.app import app

            app()
    except Interrupted as interrupted:
        ignore_signals()
        from remit_cli.render import Screen

        Screen("--json" in sys.argv).interrupted(interrupted)
        sys.exit(interrupted.exit_code)


if __name__ == "__main__":
    main()
