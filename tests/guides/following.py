"""Follow a guide: a copy of the packages with the edits that the page's blocks say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def edits(page: Path) -> list[tuple[str, str, str]]:
    """File, old text and new text of every `diff` block, whose first line names the file."""
    found = []
    for name, block in re.findall(r"^```diff\n(\S+)\n(.*?)^```", page.read_text(), re.M | re.S):
        lines = block.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] != "+")
        new = "".join(line[1:] for line in lines if line[0] != "-")
        # Without the last line break, so that a block may end with the beginning of a line.
        found.append((name, old.removesuffix("\n"), new.removesuffix("\n")))
    return found


def modules(page: Path) -> list[tuple[str, str]]:
    """File and text of every `python` block that begins with its file's name."""
    return re.findall(r"^```python\n# (\S+)\n(.*?)^```", page.read_text(), re.M | re.S)


class Followed:
    """The packages after a guide was followed, in a folder; `run` runs Python there."""

    def __init__(self, guide: str, folder: Path) -> None:
        self.folder = folder
        self.page = ROOT / "docs" / "guides" / f"{guide}.md"
        for name in ("pipelines", "remit_cli", "configs"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name, text in modules(self.page):
            assert not (folder / name).exists(), name
            (folder / name).write_text(text)
        for name, old, new in edits(self.page):
            text = (folder / name).read_text()
            assert old.strip() and text.count(old) == 1, f"{name} has not one:\n{old}"
            (folder / name).write_text(text.replace(old, new))

    def run(self, *args: str) -> str:
        """Standard output of `python ARGS` with these packages."""
        env = os.environ | {"PYTHONPATH": str(self.folder), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, *args], cwd=self.folder, env=env, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def check(self, code: str) -> None:
        """Run code that asserts."""
        self.run("-c", code)

    def tests(self) -> str:
        """The tests that the page shows."""
        text = self.page.read_text()
        return "\n".join(re.findall(r"^```python\n(def test_.*?)^```", text, re.M | re.S))
