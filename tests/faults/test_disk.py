"""A disk that fills up while a stage runs, and one that cannot be written: a small tmpfs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ARGS = "pretrain-ckpt --config world-tiny --run-dir run pretrain.tokens=60_000 " \
    "pretrain.save_steps=4"  # fmt: skip
# $REMIT runs the command. The disk is filled to the brim when the first checkpoint is complete,
# emptied again, and made read-only in the end.
SCRIPT = f"""
set -u
mount -t tmpfs -o size=32M tmpfs "$1" || exit 99
cd "$1"
$REMIT {ARGS} > out1 2> err1 &
started=$!
until ls run/base/checkpoints/*/complete.json > /dev/null 2>&1; do
    kill -0 $started || break
    sleep 0.02
done
cat /dev/zero > filler 2> /dev/null
wait $started
echo "full: $?"
ls run/base
tail -n 1 run/base/log.txt | cut -c1-60
cat err1
rm filler
$REMIT {ARGS} > out2 2> err2
echo "room again: $?"
grep -e '^resuming from' -e '^starting from' run/base/log.txt
ls run/base
mount -o remount,ro "$1"
$REMIT {ARGS} 2>&1 > /dev/null
echo "read-only: $?"
"""


def in_a_namespace(script: str, folder: Path, env: dict[str, str]) -> str:
    may = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True
    )
    if may.returncode:
        pytest.skip(f"no mount in a namespace of its own here: {may.stderr.decode().strip()}")
    env = env | {"REMIT": f"{sys.executable} -m remit_cli"}
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", script, "bash", str(folder)], env=env,
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_full_and_a_read_only_disk(tmp_path: Path, cli_env: dict[str, str]) -> None:
    said = in_a_namespace(SCRIPT, tmp_path, cli_env)
    full, _, rest = said.partition("room again: ")
    assert "full: 2" in full, said
    assert re.search(r"error: base: .*(needs|disk has) \d+ bytes .*free", full), said
    # No half file is taken for a whole one.
    assert "result.json" not in full and not re.search(r"^model$", full, re.MULTILINE), said
    assert rest.startswith("0"), said
    assert re.search(r"^resuming from .*checkpoint-\d+$", rest, re.MULTILINE), said
    assert "result.json" in rest and "model" in rest
    assert "Read-only file system" in rest and rest.rstrip().endswith("read-only: 2"), said
