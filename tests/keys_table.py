"""The table of `docs/keys.md`: for each source file of the library, the stages whose keys an edit moves. As a script, writes it anew."""

from collections import defaultdict
from pathlib import Path

from ngrpo.stages.declarations import STAGES
from ngrpo.stages.keys import PACKAGE, TRANSPARENT, source_files

DOCUMENT = Path(__file__).parents[1] / "docs" / "keys.md"
BEGIN, END = "<!-- table: python tests/keys_table.py -->\n", "<!-- end of table -->\n"


def table() -> str:
    """Return the table: a row for the files of a room that move the same keys."""
    rooms: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE)
        rooms[file.parent.as_posix()][_moves(file.as_posix())].append(file.stem)
    lines = ["| room | files | an edit moves the keys of |", "|---|---|---|"]
    for room, rows in sorted(rooms.items()):
        name = "ngrpo" if room == "." else f"ngrpo/{room}"
        for moves, files in rows.items():
            lines.append(f"| `{name}` | {' '.join(f'`{file}`' for file in files)} | {moves} |")
    return "\n".join(lines) + "\n"


def moved_by(file: str) -> tuple[str, ...]:
    """Return the stages whose keys an edit of a source file moves, in their order, not counting those that only read their results.

    Args:
        file: Path relative to the package.
    """
    return tuple(name for name, stage in STAGES.items() if file in source_files(stage.module))


def _moves(file: str) -> str:
    moved = moved_by(file)
    if len(moved) == len(STAGES):
        return "all stages"
    if moved:
        return ", ".join(f"`{stage}`" for stage in moved)
    module = ".".join(["ngrpo", *file.removesuffix(".py").removesuffix("/__init__").split("/")])
    transparent = any(f"{module}.".startswith(f"{name}.") for name in TRANSPARENT)
    return "none: transparent" if transparent else "none: no stage reaches it"


if __name__ == "__main__":
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
