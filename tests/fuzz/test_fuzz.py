"""Hostile bytes into everything that reads: a UserError or a value, no traceback, no hang.

`REMIT_FUZZ` is the number of cases of each test; `make fuzz` takes 10,000.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.comparison.row import parsed
from pipelines.data.inspection import inspect_source
from pipelines.data.sources import open_source
from pipelines.errors import UserError
from pipelines.recipe import load as recipes
from pipelines.recipe.schema import SourceConfig
from pipelines.rewards import judge_all
from pipelines.rewards.code import program
from pipelines.run_dir import ledger
from pipelines.run_dir.paths import StageDir, read_json, read_yaml
from pipelines.run_dir.progress import read_progress, tail

CASES = int(os.environ.get("REMIT_FUZZ", "60"))
fuzz = settings(
    max_examples=CASES, deadline=None, derandomize=CASES < 1000,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
# No case may take longer, on a busy machine neither.
MOST_SECONDS = 20.0

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["../../../etc/passwd", "/etc/passwd", "${oc.env:HOME}", "???", "a\0b"]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=8), below, max_size=4)
    ),
    max_leaves=10,
)
DEEP = st.sampled_from(["[" * 100_000, '{"a":' * 100_000, '{"step": ' + "9" * 5000 + "}", "NaN"])


def lines(*keys: str) -> st.SearchStrategy[bytes]:
    """Files of lines: records with known keys and any values, other JSON, torn lines, bytes."""
    known = st.dictionaries(st.sampled_from(keys), JSON, max_size=len(keys))
    line = st.one_of(
        known.map(json.dumps), JSON.map(json.dumps), known.map(lambda r: json.dumps(r)[:-2]),
        DEEP, st.text(max_size=30),
    ).map(lambda text: text.encode("utf-8", "surrogatepass"))  # fmt: skip
    return st.lists(line | st.binary(max_size=30), max_size=4).map(b"\n".join)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The only folder that may hold anything afterwards."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "run").mkdir()
    yield folder / "run"
    assert [path.name for path in folder.iterdir()] == ["run"]


def survives(read: Callable[[], Any]) -> Any:
    """What was read; None where it was refused in one sentence."""
    started = time.monotonic()
    try:
        return read()
    except UserError as error:
        assert str(error)
        return None
    finally:
        assert time.monotonic() - started < MOST_SECONDS


def sections() -> list[str]:
    return [*recipes.to_dict(recipes.load("world-tiny"))]


@fuzz
@given(
    st.one_of(
        st.binary(max_size=60), DEEP.map(str.encode),
        st.dictionaries(
            st.sampled_from(sections()) | st.text(max_size=8), JSON, max_size=4
        ).map(lambda values: yaml.safe_dump(values, allow_unicode=True).encode()),
        st.sampled_from([
            b"!!python/object/apply:os.system ['touch owned']", b"a: &a [*a]", b"seed: *b",
            b"name: ../../up", b"name: ${name}", b"<<: [1]", b"? [a]\n: 1",
            b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]", b"data_root: ${oc.create:${seed}}",
        ]),
    ),
    st.lists(st.text(max_size=15) | st.tuples(
        st.sampled_from(["seed", "name", "mid_train.remit.eps", "sft.sources.a", "launch.env",
        "eval"]),
        st.text(max_size=12),
    ).map("=".join), max_size=2),
)  # fmt: skip
def test_config(here: Path, content: bytes, overrides: list[str]) -> None:
    path = here / "recipe.yaml"
    path.write_bytes(content)
    loaded = survives(lambda: recipes.load(str(path), overrides))
    if loaded is not None:
        assert "/" not in loaded.name and "/" not in loaded.stage.name
    assert not Path("owned").exists()


@pytest.mark.parametrize("kind", ["jsonl", "text", "parquet"])
@fuzz
@given(
    content=lines("prompt", "answer", "response", "text", "domain") | st.binary(max_size=200),
    zipped=st.sampled_from(["", "gz", "torn"]),
)
def test_data_readers(
    here: Path, tmp_path_factory: pytest.TempPathFactory, kind: str, content: bytes, zipped: str
) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = here / "cache"
    path = here / f"records.{kind}{'.gz' if zipped else ''}"
    packed = gzip.compress(content) if zipped else content
    path.write_bytes(packed[:-9] if zipped == "torn" else packed)
    source = SourceConfig(kind=kind, path=str(path))  # type: ignore[arg-type]
    survives(lambda: list(open_source("mine", source, here, 0)))
    survives(lambda: inspect_source("sft.sources.mine", source, str(here), "conversations", None))
    path.unlink()


@fuzz
@given(lines("time", "event", "stage", "kind", "inputs") | st.binary(max_size=100))
def test_ledger(here: Path, content: bytes) -> None:
    path = here / "ledger.jsonl"
    path.write_bytes(content)
    before = survives(lambda: list(ledger.read(path)))
    assert all(ledger.is_name(entry["stage"]) for entry in before)
    written = ledger.append(path, "start", "base")
    assert list(ledger.read(path)) == [*before, written]


@fuzz
@given(lines("step", "max_steps", "time", "elapsed", "loss", "reward", "tokens_per_second"))
def test_metrics(here: Path, content: bytes) -> None:
    stage = StageDir(here)
    stage.metrics.write_bytes(content)
    survives(lambda: str(read_progress(stage)))
    survives(lambda: tail(stage.metrics))


@fuzz
@given(lines("arm", "seed", "kind", "config") | DEEP.map(str.encode) | st.binary(max_size=100))
def test_files_of_a_run(here: Path, content: bytes) -> None:
    path = here / "result.json"
    path.write_bytes(content)
    survives(lambda: read_json(path, needs=("kind",)))
    survives(lambda: read_yaml(path))
    survives(lambda: parsed(path, "rows"))


ANSWERS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="0123456789\\{}$^_+-*/=()#., abfrcxyz!\n", max_size=60),
    st.lists(
        st.sampled_from(["#### ", "$", r"\frac", "{", "}", r"\boxed{", "9^", "9", "!", "answer is ",
                         "```python\n", "```", "\n", " so ", "-1,000", ",000", "/0", "e99999", "%",
                         r"\sqrt[", r"\begin{matrix}", "\\\\", "&", "\x00", "\ud800", "٣", "²"]),
        max_size=15,
    ).map("".join),
    st.sampled_from(["1," * 50_000, "1,111" * 20_000, "9" * 100_000, "{" * 50_000, "(" * 50_000,
                     "```" * 30_000, "####" * 30_000, "$" * 50_000, "- " * 50_000]),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["exact", "math", "world"])
@fuzz
@given(completion=ANSWERS, answer=ANSWERS)
def test_rewards(kind: str, completion: str, answer: str) -> None:
    assert survives(lambda: judge_all(kind, [(completion, answer)])) in ([0.0], [1.0])


@fuzz
@given(ANSWERS)
def test_program_of_a_completion(completion: str) -> None:
    assert isinstance(survives(lambda: program(completion)), str)
