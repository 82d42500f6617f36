"""The rooms of the source and the arrows between them, read from the files: nothing is imported.

A room is a folder of the library (`ngrpo.training`), of the components or of the pipelines, or a module beside these folders. An arrow is
an import anywhere in a file: at its top, in a function (the body of a kfp component too) or for type checkers only; or a text that names
a module in full (`"ngrpo.stages.attempt"`: something loads it by that name). Names that are built at run time are not seen.

`python tests/architecture.py` prints the figures.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+){2,}(:\w+)?")  # with fewer dots it is a tag: "ngrpo.key"


@dataclass(frozen=True, order=True)
class Arrow:
    """One import: the module that imports, the one that is imported, and the line."""

    source: str
    target: str
    line: int

    @property
    def rooms(self) -> tuple[str, str]:
        """The rooms at both ends."""
        return room(self.source), room(self.target)

    def __str__(self) -> str:
        """Say where it is."""
        return f"{self.source}:{self.line} imports {self.target}"


@dataclass(frozen=True)
class Architecture:
    """The source below a folder: the path of each module by the dotted name that it is imported by."""

    modules: Mapping[str, Path]

    @classmethod
    def of(cls, root: Path = ROOT) -> "Architecture":
        """Find the modules of a checkout."""
        modules = {}
        for path in sorted([*root.glob("components/**/*.py"), *root.glob("pipelines/**/*.py")]):
            parts = path.relative_to(root).with_suffix("").parts
            # setuptools' `package-dir` maps the folders so
            name = ".".join(parts[1:] if parts[:2] == ("components", "ngrpo") else ("ngrpo_kfp", *parts))
            modules[name.removesuffix(".__init__")] = path
        return cls(modules)

    @cached_property
    def rooms(self) -> list[str]:
        """The rooms that hold code."""
        return sorted({room(name) for name in self.modules} - {""})

    @cached_property
    def imports(self) -> list[tuple[str, str, int]]:
        """Every import and text that names a module: who, what is named, and the line; what is not ours too."""
        return [(name, target, line) for name in self.modules for target, line in self._names(name)]

    @cached_property
    def arrows(self) -> list[Arrow]:
        """The arrows between two modules of ours."""
        found = {
            Arrow(name, target, line)
            for name, named, line in self.imports
            if (target := self._module(named)) is not None
        }
        return sorted(arrow for arrow in found if arrow.source != arrow.target)

    @cached_property
    def arrows_of_rooms(self) -> list[Arrow]:
        """The arrows that leave a room."""
        return [arrow for arrow in self.arrows if arrow.rooms[0] != arrow.rooms[1] and all(arrow.rooms)]

    def up(self, order: Mapping[str, int]) -> list[Arrow]:
        """The arrows that do not point down; `order` is the height of each room, and rooms of one height know nothing of each other."""
        return [arrow for arrow in self.arrows_of_rooms if order[arrow.rooms[0]] <= order[arrow.rooms[1]]]

    @property
    def circles_of_rooms(self) -> list[list[str]]:
        """Rooms that reach each other."""
        return circles({arrow.rooms for arrow in self.arrows_of_rooms})

    @property
    def circles_of_modules(self) -> list[list[str]]:
        """Modules that reach each other."""
        return circles({(arrow.source, arrow.target) for arrow in self.arrows})

    @property
    def longest(self) -> tuple[str, int]:
        """The longest file of Python and its lines."""
        lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in self.modules.items()}
        return max(lines.items(), key=lambda item: item[1])

    def _module(self, named: str) -> str | None:
        """Return the module of ours that a dotted name is, or is in."""
        name = named.partition(":")[0]
        return next((each for each in (name, name.rpartition(".")[0]) if each in self.modules), None)

    def _names(self, module: str) -> Iterator[tuple[str, int]]:
        path = self.modules[module]
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))))
        # What is told of modules (`ngrpo.stages.keys.TRANSPARENT`) runs none of them.
        told_of = {id(key) for node in nodes if isinstance(node, ast.Dict) for key in node.keys}
        for node in nodes:
            if id(node) in told_of:
                continue
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parents = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*parents, *([node.module] if node.module else [])])
                yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
                yield node.value, node.lineno


def room(module: str) -> str:
    """Return the room of a module: `ngrpo.training`, `components.launching`, `pipelines.local`; none for the packages that hold rooms."""
    parts = module.removeprefix("ngrpo_kfp.").split(".")
    return ".".join(parts[:2]) if len(parts) > 1 else ""


def circles(arrows: set[tuple[str, str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other: the strongly connected parts with more than one node."""
    targets: dict[str, set[str]] = {}
    for source, target in arrows:
        targets.setdefault(source, set()).add(target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = targets.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    reach = {node: reached(node) for node in targets}
    groups = {
        frozenset({other for other in found if node in reach.get(other, set())})
        for node, found in reach.items()
        if node in found
    }
    return sorted(sorted(group) for group in groups)


def report(architecture: Architecture) -> str:
    """Return the figures in words."""
    name, lines = architecture.longest
    pairs = {arrow.rooms for arrow in architecture.arrows_of_rooms}
    return (
        f"{len(architecture.rooms)} rooms, {len(architecture.modules)} modules, {len(pairs)} arrows between rooms "
        f"({len(architecture.arrows_of_rooms)} imports), {len(architecture.circles_of_rooms)} circles of rooms, "
        f"{len(architecture.circles_of_modules)} circles of modules; longest file {name}, {lines} lines"
    )


if __name__ == "__main__":
    print(report(Architecture.of(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)))
