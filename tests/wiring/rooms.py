"""The rooms of src/un2clip from bottom to top, and their picture: `make rooms` draws docs/rooms.svg."""

import ast
from collections.abc import Iterator
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/un2clip"
PICTURE = ROOT / "docs/rooms.svg"
#: A room may import the rooms that stand before it, and no other.
ROOMS = (
    "errors", "files", "hashes", "processes", "config", "devices", "doctor",  # the ground
    "datasets", "evidence", "tracking", "sources", "models", "decoders", "methods", "training", "assistants",
    "evaluation", "world", "stages", "study", "planning", "cluster", "cli", "__main__",
)  # fmt: skip

Edges = set[tuple[str, str]]

WIDTH, GAP, MARGIN, LINE = 1080, 26, 14, 13
LETTERS = 6.1  # pixels of one letter in the small type


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    names = {path: path.relative_to(PACKAGE.parent).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in sorted(names.items())}


def room_of(module: str) -> str:
    """The room that holds a module; "" for the package itself."""
    return ".".join(module.split(".")[1:2])


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                yield inner if inner in known else node.module


def file_edges() -> Edges:
    """(importing module, imported module)."""
    known = modules()
    return {(module, each) for module, path in known.items() for each in imports(path, known) if each != module}


def room_edges() -> Edges:
    """(importing room, imported room)."""
    pairs = {(room_of(above), room_of(below)) for above, below in file_edges()}
    return {(above, below) for above, below in pairs if above and below and above != below}


def floors(edges: Edges) -> dict[str, int]:
    """How high each room stands: one floor above the highest that it imports."""
    found: dict[str, int] = {}
    for room in ROOMS:
        found[room] = 1 + max((found[below] for above, below in edges if above == room), default=-1)
    return found


def needed(edges: Edges) -> Edges:
    """The edges that no longer way implies: what a picture has to show."""
    reach: dict[str, set[str]] = {}
    for room in ROOMS:
        below = {each for above, each in edges if above == room}
        reach[room] = below.union(*(reach[each] for each in below))
    return {
        (above, below)
        for above, below in edges
        if not any(below in reach[other] for other in {each for room, each in edges if room == above} - {below})
    }


def described(room: str) -> tuple[str, list[str]]:
    """The first sentence of a room's docstring, and the names of what is in it."""
    folder = PACKAGE / room
    path = folder / "__init__.py" if folder.is_dir() else PACKAGE / f"{room}.py"
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].rstrip(".")
    if not folder.is_dir():
        return text, []
    files = sorted(each.stem for each in folder.glob("*.py") if each.stem != "__init__")
    return text, files + sorted(f"{each.parent.name}/" for each in folder.glob("*/__init__.py"))


def draw() -> str:
    """The picture as SVG: a row a floor, a box a room, an arrow to each room that it stands on."""
    edges = room_edges()
    stands = floors(edges)
    boxes: dict[str, tuple[float, float, float, float]] = {}
    body: list[str] = []
    y = float(MARGIN)
    for floor in range(max(stands.values()), -1, -1):
        row = [room for room in ROOMS if stands[room] == floor]
        width = min(560.0, (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row))
        texts = {room: lines_of(room, int((width - 16) / LETTERS)) for room in row}
        height = 30 + LINE * max(map(len, texts.values()))
        x = (WIDTH - width * len(row) - GAP * (len(row) - 1)) / 2
        for room in row:
            boxes[room] = (x, y, width, height)
            body += box(room, texts[room], boxes[room])
            x += width + GAP
        y += height + GAP
    arrows = [arrow(boxes[above], boxes[below]) for above, below in sorted(needed(edges))]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP + MARGIN:.0f}" '
        'font-family="Helvetica, Arial, sans-serif">'
    )
    marker = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#667788"/></marker>'
    )
    sheet = f'<rect width="{WIDTH}" height="{y - GAP + MARGIN:.0f}" fill="white"/>'
    return "\n".join([head, marker, sheet, *arrows, *body, "</svg>"]) + "\n"


def lines_of(room: str, letters: int) -> list[str]:
    text, names = described(room)
    return wrap(text, letters) + wrap(" · ".join(names), letters)


def box(room: str, lines: list[str], at: tuple[float, float, float, float]) -> list[str]:
    x, y, width, height = at
    names = len(wrap(" · ".join(described(room)[1]), int((width - 16) / LETTERS)))
    title = room if (PACKAGE / room).is_dir() else f"{room}.py"
    drawn = [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="4" fill="#eef4fa" '
        'stroke="#667788"/>',
        f'<text x="{x + 8:.0f}" y="{y + 18:.0f}" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for i, line in enumerate(lines):
        colour = "#2563a8" if i >= len(lines) - names else "#333333"
        place = f'x="{x + 8:.0f}" y="{y + 34 + LINE * i:.0f}"'
        drawn.append(f'<text {place} font-size="11" fill="{colour}">{escape(line)}</text>')
    return drawn


def arrow(above: tuple[float, float, float, float], below: tuple[float, float, float, float]) -> str:
    """From the lower edge of one box to the upper edge of another; below the boxes in the drawing's order."""
    x, y = above[0] + above[2] / 2, above[1] + above[3]
    to_x = min(max(x, below[0] + 20), below[0] + below[2] - 20)
    return (
        f'<path d="M{x:.0f} {y:.0f} L{to_x:.0f} {below[1]:.0f}" stroke="#667788" fill="none" marker-end="url(#tip)"/>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw())
    print(f"{PICTURE.relative_to(ROOT)}: {len(ROOMS)} rooms, {len(room_edges())} imports between them")
