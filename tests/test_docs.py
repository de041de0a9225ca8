"""The documentation says what the code has: every config key, every command line.

After a change of `pipelines/recipe/schema`, `python docs/key_tables.py` writes the tables of
`docs/reference/configuration.md` again.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from pipelines.comparison.arm_rules import whole_key
from pipelines.plan.kinds import kind_of
from pipelines.recipe import load as recipes
from pipelines.recipe import schema
from remit_cli.app import app

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))
import draw_packages
import key_tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SECTIONS = key_tables.sections(schema.Config)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.__name__)
def test_every_key_is_documented_with_its_default(section: type) -> None:
    part = key_tables.part_of(key_tables.PAGE.read_text("utf-8"), section)
    assert part, f"docs/reference/configuration.md has no heading '### {section.__name__}'"
    written = [line for line in part.splitlines() if line.startswith("| `")]
    assert written == key_tables.rows(section), "run python docs/key_tables.py"


def command_lines(page: Path) -> list[list[str]]:
    """Every `remit ...` in the code blocks of a page, continuation lines joined."""
    found = []
    for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.search(r"(?:^|\s)remit (\S.*)", re.split(r" [#>|]", line)[0])
            if command:
                found.append(shlex.split(command.group(1)))
    return found


LINES = [(page, line) for page in PAGES for line in command_lines(page)]


@pytest.mark.parametrize(
    ("page", "line"), LINES, ids=[f"{p.name}: {' '.join(line)}"[:80] for p, line in LINES]
)
def test_every_command_line_parses(
    page: Path, line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, (click.Group, typer.core.TyperGroup))
    if line[0].startswith("-"):
        return
    assert line[0] in group.commands, f"{page.name}: no command 'remit {line[0]}'"
    command = group.commands[line[0]]
    if "--help" in line:
        return
    context = command.make_context(line[0], list(line[1:]))
    name = context.params.get("config")
    if (recipes.configs_dir() / f"{name}.yaml").is_file():
        monkeypatch.setenv("REMIT_DATA", str(ROOT))
        # A loop of the shell gives a seed.
        overrides = [re.sub(r"\$seed\b", "1", o) for o in context.params["overrides"] or []]
        if line[0] == "compare":
            overrides = [whole_key(override) for override in overrides]
        recipes.load(name, overrides)


def test_pages_have_command_lines() -> None:
    assert len(LINES) > 10


def named_commands(page: Path) -> str:
    """The code of a page, in blocks and within lines, a piece a line, continuation lines joined."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return "\n".join([*blocks, *(" ".join(s.split()) for s in re.findall(r"`([^`]+)`", outside))])


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.M))


def named_targets(text: str) -> list[str]:
    """The targets of every `make ...`, without its variables and what follows in the line."""
    found = []
    for line in re.findall(r"^\s*(?:\S+=\S+ )*make( .+)$", text, re.M):
        for word in shlex.split(re.split(r"\s[#>|]|&&|;", line)[0]):
            if not word.startswith("-") and "=" not in word:
                found.append(word)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_pages_name_is_there(page: Path) -> None:
    """Targets of the Makefile, scripts among the tests, suites of configs/eval."""
    text = named_commands(page)
    assert [target for target in named_targets(text) if target not in make_targets()] == []
    scripts = re.findall(r"\btests/[\w./]+\.py", text)
    assert [script for script in scripts if not (ROOT / script).exists()] == []
    suites = re.findall(r"(?:--suite[ =]|eval\.suite=)([\w./~-]+)", text)
    folder = recipes.configs_dir() / "eval"
    assert [suite for suite in suites if not (folder / f"{suite}.yaml").is_file()] == []


def test_what_pages_name_is_found() -> None:
    text = "\n".join(map(named_commands, PAGES))
    assert {"flywheel", "test", "gold", "soak"} <= set(named_targets(text)) <= make_targets()
    assert re.search(r"--suite paper10", text)
    wrong = "make nothing RANKS=1  # a comment\nX=1 make test ARGS='-k a b' && echo make"
    assert named_targets(wrong) == ["nothing", "test"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text.isascii()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get on a code host."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    words = [re.sub(r"[^\w -]", "", h.lower()) for h in re.findall(r"^#+ (.*)$", text, re.M)]
    return {heading.strip().replace(" ", "-") for heading in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text("utf-8")):
        assert anchor in anchors((page.parent / target) if target else page), (target, anchor)


RECIPES = [
    (page, recipe)
    for page in PAGES
    for recipe in re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
]


@pytest.mark.parametrize(("page", "recipe"), RECIPES, ids=[p.name for p, _ in RECIPES])
def test_recipes_of_the_pages_load(page: Path, recipe: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    recipes.load(str(file), [])


PLOTS = re.findall(
    r"^remit (report .*--output docs/results/\S+\.svg)$",
    (ROOT / "docs" / "background" / "results.md").read_text(),
    re.MULTILINE,
)


def test_every_plot_of_the_results_has_a_command() -> None:
    drawn = {shlex.split(line)[-1] for line in PLOTS}
    assert drawn == {str(p.relative_to(ROOT)) for p in ROOT.glob("docs/results/*.svg")}


@pytest.mark.parametrize("line", PLOTS, ids=lambda line: line.rsplit("/", 1)[1])
def test_plots_of_the_results_are_what_their_rows_draw(
    remit: Callable[..., Any], tmp_path: Path, line: str
) -> None:
    *args, committed = shlex.split(line)
    remit(*args, tmp_path / "plot.svg", cwd=ROOT, check=True)
    assert (tmp_path / "plot.svg").read_text() == (ROOT / committed).read_text()


def test_the_way_to_the_loss_is_short() -> None:
    """The nine files of docs/background/architecture.md, each imported by one before it."""
    text = (ROOT / "docs" / "background" / "architecture.md").read_text("utf-8")
    way = [
        f.removesuffix(".py").replace("/", ".") for f in re.findall(r"^\d+\. `(\S+)`", text, re.M)
    ]
    assert 2 <= len(way) <= 9
    assert (way[0], way[-1]) == ("remit_cli.app", "pipelines.objectives.losses")
    # A process is started there, and there the stage comes by its kind's module.
    boundaries = {"pipelines.worker.worker", kind_of("mid_train").module}
    for number, module in enumerate(way[1:], start=1):
        known = set().union(*(draw_packages.imports(earlier) for earlier in way[:number]))
        assert module in known | boundaries, module
