"""Structure: import costs, frozen options, sizes, the wheel."""

from __future__ import annotations

import ast
import importlib.util
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import typer
from mutants import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("remit_cli", "pipelines")
SOURCES = sorted(path.relative_to(ROOT) for top in TOPS for path in (ROOT / top).rglob("*.py"))
HEAVY = ("torch", "transformers", "datasets", "deepspeed", "trl", "accelerate", "tokenizers")
COMMON = {"--config", "--run-dir", "--gpus", "--hostfile", "--json"}
OPTIONS = {
    "pretrain-ckpt": COMMON | {"--base"},
    "mid-train": COMMON | {"--base", "--ref"},
    "rl-tune": COMMON | {"--base"},
    "post-train": COMMON | {"--base"},
    "eval": COMMON | {"--model", "--suite", "--chat", "--no-chat"},
    "score": COMMON | {"--model", "--base"},
    "contamination": COMMON,
    "flywheel": COMMON | {"--iterations", "--base", "--ref", "--until", "--only"},
    "compare": COMMON | {"--base", "--ref"},
    "plan": COMMON | {"--iterations", "--base", "--ref", "--compare"},
    "analyze": {"--json"},
    "launch": {"--slurm", "--per-stage", "--output", "--json"},
    "doctor": {"--run-dir", "--json"},
    "status": {"--once", "--json"},
    "report": {"--format", "--output", "--no-text", "--open", "--chart"}
    | {"--arms", "--against", "--seeds"},
}
# Files that are tables of data more than code.
DATA_TABLES: set[str] = set()


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


LAUNCHER = ("remit_cli", *(f"pipelines.{p}" for p in ("plan", "comparison", "launch", "report")))


def commands() -> dict[str, Any]:
    from remit_cli.app import app

    group = typer.main.get_command(app)
    return dict(group.commands)  # type: ignore[attr-defined]


def options(command: Any) -> set[str]:
    found = [p for p in command.params if p.param_type_name == "option"]
    return {name for p in found for name in [*p.opts, *p.secondary_opts]} - {"--help", "-h"}


def test_the_launcher_side_imports_nothing_heavy() -> None:
    launchers = [m for m in MODULES if m.startswith(LAUNCHER) and not m.endswith("__main__")]
    code = f"import sys\nfor name in {launchers}: __import__(name)\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                            check=True).stdout.split()  # fmt: skip
    assert "remit_cli.session" in loaded and "pipelines.launch.runner" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_help_imports_little() -> None:
    code = "import sys, remit_cli.app\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                            check=True).stdout.split()  # fmt: skip
    assert [name for name in (*HEAVY, "omegaconf", "numpy", "scipy") if name in loaded] == []


def test_help_is_quick(remit: Any) -> None:
    def cpu_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    cpus = []
    for _ in range(5):
        cpu = cpu_seconds()
        assert "flywheel" in remit("--help", check=True, cold=True).stdout
        cpus.append(cpu_seconds() - cpu)
    # CPU seconds of the quickest: on a busy machine the clock on the wall measures the others.
    assert min(cpus) < 0.4, cpus


def test_options_are_frozen() -> None:
    assert {name: options(command) for name, command in commands().items()} == OPTIONS
    from remit_cli.app import app

    assert options(typer.main.get_command(app)) == {"--version"}


def test_version(remit: Any) -> None:
    from pipelines import __version__

    assert remit("--version", check=True).stdout == f"remit {__version__}\n"
    code = "import sys\nfrom remit_cli.app import app\ntry: app(['--version'])\n"
    code += "except SystemExit: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                            check=True).stdout.split()  # fmt: skip
    assert "remit_cli.app" in loaded
    assert [name for name in (*HEAVY, "omegaconf", "numpy") if name in loaded] == []


@pytest.mark.parametrize("name", OPTIONS)
def test_few_options_all_explained_with_an_example(name: str, remit: Any) -> None:
    command = commands()[name]
    most = {"flywheel": 10, "plan": 9}.get(name, 8)
    assert sum(p.param_type_name == "option" for p in command.params) <= most
    assert all(p.help for p in command.params if p.name != "help")
    text = remit(name, "--help", check=True).stdout
    assert f"Example: remit {name}" in text and "\x1b" not in text


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_sizes(path: Path) -> None:
    text = (ROOT / path).read_text()
    if str(path) not in DATA_TABLES:
        assert text.count("\n") <= 400
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno
        and node.end_lineno - node.lineno + 1 > 60
    }  # fmt: skip
    assert long == {}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_modules_are_named_after_a_noun_and_say_what_they_are(path: Path) -> None:
    assert path.stem not in ("utils", "helpers", "core", "common", "misc")
    text = (ROOT / path).read_text()
    assert not text or ast.get_docstring(ast.parse(text))


def test_every_mutant_has_its_line() -> None:
    gone = [m.old for m in MUTANTS if (ROOT / m.file).read_text().count(m.old) != 1]
    assert gone == [], "mend tests/mutants.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(importlib.util.find_spec(name) for name in ("build", "hatchling")):
        pytest.skip("needs build and hatchling")
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), "."],
        check=True, capture_output=True, cwd=ROOT,
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_packages_and_the_recipes(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"remit_cli", "pipelines"}
    templates = {str(p.relative_to(ROOT)) for p in ROOT.glob("pipelines/report/templates/*")}
    assert templates and {str(path) for path in SOURCES} | templates <= names
    recipes = {
        f"pipelines/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "configs").rglob("*.yaml")
    }
    assert recipes and {n for n in names if n.startswith("pipelines/configs/")} == recipes
    assert not [n for n in names if n.endswith((".pyc", ".md")) and ".dist-info" not in n]


def test_installed_wheel_works_elsewhere(wheel: Path, remit: Any, tmp_path: Path) -> None:
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--disable-pip-version-check", "--target", str(target), str(wheel)],
        check=True, capture_output=True,
    )  # fmt: skip
    here = tmp_path / "here"
    here.mkdir()
    env = {"PYTHONPATH": str(target)}
    code = "import pipelines.recipe.load as c; print(c.configs_dir())"
    found = subprocess.run([sys.executable, "-c", code], cwd=here, env=os.environ | env, text=True,
                           capture_output=True, check=True).stdout.strip()  # fmt: skip
    assert found == str(target / "pipelines" / "configs")
    done = remit("plan", "--config", "world-tiny", "--json", cwd=here, env=env, check=True)
    assert done.json["status"] == "planned" and list(here.iterdir()) == []
