"""Draw the packages of the project from their imports: `python docs/draw_packages.py`.

Writes docs/packages.svg. Each row is a floor: a package imports only from floors below its own. An
arrow is left out where a longer way of arrows says the same. tests/test_layers.py checks that the
drawing is that of the code.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DRAWING = ROOT / "docs" / "packages.svg"
WIDTH, HEIGHT, GAP, FLOOR, MARGIN = 196, 62, 22, 104, 20
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("pipelines", "remit_cli")
    for path in sorted((ROOT / top).rglob("*.py"))
}


def imports(module: str) -> Iterator[str]:
    """Every module of ours that a module imports, wherever in its file, types included."""
    path = MODULES[module]
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            name = importlib.util.resolve_name(name, package)
            for alias in node.names:
                whole = f"{name}.{alias.name}"
                if whole in MODULES or name in MODULES:
                    yield whole if whole in MODULES else name


def room(module: str) -> str:
    """`data` of `pipelines.data.packing`, `errors` of `pipelines.errors`, and `remit_cli`."""
    top, _, below = module.partition(".")
    return below.partition(".")[0] if top == "pipelines" and below else top


def arrows() -> dict[str, set[str]]:
    """By package, the other packages that it imports."""
    found: dict[str, set[str]] = {room(m): set() for m in MODULES if m != "pipelines"}
    for module in MODULES:
        if module != "pipelines":
            used = {room(u) for u in imports(module) if u != "pipelines"}
            found[room(module)] |= used - {room(module)}
    return found


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Packages by floor, the lowest first.

    Raises:
        ValueError: packages import each other in a circle.
    """
    left, found = dict(graph), []
    while left:
        floor = sorted(name for name, used in left.items() if not used & left.keys())
        if not floor:
            raise ValueError(f"packages in a circle: {', '.join(sorted(left))}")
        found.append(floor)
        left = {name: used for name, used in left.items() if name not in floor}
    return found


def _reach(graph: dict[str, set[str]], start: str) -> set[str]:
    found, todo = set(), list(graph[start])
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += graph[name]
    return found


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no longer way of arrows replaces."""
    return {
        name: {u for u in used if not any(u in _reach(graph, v) for v in used if v != u)}
        for name, used in graph.items()
    }


def purpose(name: str) -> str:
    """The first sentence of a package's docstring."""
    module = MODULES[name if name == "remit_cli" else f"pipelines.{name}"]
    text = ast.get_docstring(ast.parse(module.read_text())) or ""
    return text.splitlines()[0].partition(". ")[0].rstrip(".")


def _lines(text: str, width: int = 30) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:3]


def drawing() -> str:
    """The SVG."""
    graph = arrows()
    rows = floors(graph)[::-1]
    most = max(len(row) for row in rows)
    width = 2 * MARGIN + most * WIDTH + (most - 1) * GAP
    place: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        left = (width - len(row) * WIDTH - (len(row) - 1) * GAP) / 2
        for index, name in enumerate(row):
            place[name] = (left + index * (WIDTH + GAP), MARGIN + number * FLOOR)
    height = 2 * MARGIN + (len(rows) - 1) * FLOOR + HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif">',
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#7a8594"/></marker>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for name, used in sorted(reduced(graph).items()):
        x, y = place[name]
        for other in sorted(used):
            to_x, to_y = place[other]
            start, end = (x + WIDTH / 2, y + HEIGHT), (to_x + WIDTH / 2, to_y - 2)
            bend = (end[1] - start[1]) / 2
            parts.append(
                f'<path d="M{start[0]:g} {start[1]:g}C{start[0]:g} {start[1] + bend:g} '
                f'{end[0]:g} {end[1] - bend:g} {end[0]:g} {end[1]:g}" fill="none" '
                'stroke="#7a8594" stroke-width="1.1" marker-end="url(#tip)"/>'
            )
    for name, (x, y) in place.items():
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#f3f6fa" '
            f'stroke="#2c5282"/><text x="{x + 10:g}" y="{y + 18:g}" font-size="14" '
            f'font-weight="bold" fill="#1a365d">{escape(name)}</text>'
        )
        for line, text in enumerate(_lines(purpose(name))):
            parts.append(
                f'<text x="{x + 10:g}" y="{y + 32 + 12 * line:g}" font-size="10" fill="#333">'
                f"{escape(text)}</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    DRAWING.write_text(drawing())
