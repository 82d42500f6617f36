"""Python files of the user: what they import, and which of it lies beside them.

Only the text is read. Nothing of it runs before the stage that uses it.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ngrpo.config.text_files import read_text

LARGEST_CODE = 100_000
"""Characters of code in a run: it travels with the settings, and a pipeline on a cluster has room for about a million in all."""
TOO_LARGE = (
    f"more than {LARGEST_CODE:,} characters of code, which travels with the settings: put it into a package that is installed where "
    "stages run, and name it package.module:function"
)


@dataclass(frozen=True)
class Import:
    """One import of a source file."""

    level: int
    """Leading dots; 0 for an absolute import."""
    module: tuple[str, ...]
    """Parts of the module's dotted name."""
    names: tuple[str, ...]
    """What is taken from the module, which may be modules below it."""
    line: int

    def __str__(self) -> str:
        """Return the module as it is written."""
        return "." * self.level + ".".join(self.module)


def parse(name: str, source: str) -> ast.Module:
    """Parse a source file.

    Args:
        name: Its name, for the message.
        source: Its text.

    Raises:
        ValueError: It is not valid Python of this version; the message has the line.
    """
    try:
        return ast.parse(source)
    except SyntaxError as error:
        where = name if error.lineno is None else f"{name}, line {error.lineno}"  # a NUL has no line
        raise ValueError(f"{where}: not Python: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL; nested too deeply
        raise ValueError(f"{name}: not Python: {str(error) or 'nested too deeply'}") from error


def imports(tree: ast.AST) -> Iterator[Import]:
    """Yield every import below a node, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(0, tuple(alias.name.split(".")), (), node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            yield Import(node.level, module, tuple(alias.name for alias in node.names), node.lineno)


def defined(tree: ast.Module) -> set[str] | None:
    """Return the names that a file defines at its top; none where it imports all names of another module, so that nobody knows."""
    found: set[str] = set()
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            continue
        for child in ast.walk(node):
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                found.add(child.id)
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        waiting += [
            child
            for handler in ast.iter_child_nodes(node)
            if isinstance(handler, ast.ExceptHandler | ast.match_case)
            for child in handler.body
        ]
    return None if "*" in found else found


def read_code(file: Path) -> dict[str, str]:
    """Read a source file, and the modules that it imports from beside it, and those that they import.

    Returns:
        Their texts by path relative to the file's folder, in alphabetical order.

    Raises:
        ConfigError: A file cannot be read.
        ValueError: One is not valid Python or imports what lies outside the folder, or all are too large.
    """
    folder = file.parent
    code: dict[str, str] = {}
    waiting = [file.name]
    while waiting:
        name = waiting.pop()
        if name in code:
            continue
        # One text for one content, whatever the editor's line ends are.
        code[name] = read_text("file", folder / name).replace("\r\n", "\n")
        if sum(map(len, code.values())) > LARGEST_CODE:
            raise ValueError(TOO_LARGE)
        for each in imports(parse(name, code[name])):
            waiting += _beside(folder, name, each)
    return dict(sorted(code.items()))


def foreign_imports(code: Mapping[str, str]) -> set[str]:
    """Return the top-level modules that files need and that are neither theirs nor Python's own.

    An import that may fail (in a `try`), or that only type checkers see, is not needed.

    Args:
        code: Texts by relative path, as `read_code` returns them.
    """
    found: set[str] = set()
    for name, source in code.items():
        tree = parse(name, source)
        spared = {each for node in ast.walk(tree) if _is_optional(node) for each in imports(node)}
        found |= {each.module[0] for each in imports(tree) if each.level == 0 and each not in spared}
    return found - tops(code) - sys.stdlib_module_names


def tops(code: Iterable[str]) -> set[str]:
    """Return the top-level modules that files are, by their relative paths."""
    return {PurePosixPath(name).parts[0].removesuffix(".py") for name in code}


def _beside(folder: Path, name: str, each: Import) -> list[str]:
    """Return the files of a folder that an import of one of them loads."""
    inside = PurePosixPath(name).parent.parts
    if each.level > len(inside) + 1:
        raise ValueError(_outside(name, each, folder))
    base = inside[: len(inside) - each.level + 1] if each.level else ()
    whole = (*base, *each.module)
    chain = [whole[:length] for length in range(1, len(whole) + 1)] + [(*whole, taken) for taken in each.names]
    files = {parts: file for parts in chain if (file := _file(folder, parts)) is not None}
    if each.level and not files.keys() & {whole, *((*whole, taken) for taken in each.names)}:
        raise ValueError(f"{name}, line {each.line}: imports {each}, and there is no such file in {str(folder)!r}")
    if not each.level and not files and _lies_above(folder, each.module[0]):
        raise ValueError(_outside(name, each, folder))
    return list(files.values())


def _file(folder: Path, parts: tuple[str, ...]) -> str | None:
    path = "/".join(parts)
    return next((file for file in (f"{path}/__init__.py", f"{path}.py") if parts and (folder / file).is_file()), None)


def _lies_above(folder: Path, top: str) -> bool:
    """Say whether a module is one of the folder above, and not an installed one of that name."""
    above = folder.absolute().parent
    if top in sys.stdlib_module_names or _file(above, (top,)) is None:
        return False
    found = importlib.util.find_spec(top)
    return found is None or (found.origin is not None and Path(found.origin).is_relative_to(above))


def _outside(name: str, each: Import, folder: Path) -> str:
    return (
        f"{name}, line {each.line}: imports {each}, which lies outside its folder {str(folder)!r}: only what is beside the file goes "
        "along; move it there, or name a file of the folder above"
    )


def _is_optional(node: ast.AST) -> bool:
    return isinstance(node, ast.Try) or (
        isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    )
