"""Imports functions of the user.

Files become modules of a package of their own, which is named by their content. Two files called `rewards.py` so never meet, and
neither meets an installed module of that name. Inside them `import helper` finds the `helper.py` beside them.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ngrpo.config.code import UserCode
from ngrpo.config.source_files import tops
from ngrpo.errors import UserCodeError
from ngrpo.storage.whole_files import written_whole

_PREFIX = "_ngrpo_user_code_"


def load(reference: UserCode, work: Path) -> Callable[..., Any]:
    """Import a function of the user.

    Args:
        reference: The function, with the text of its files.
        work: Directory of the stage, below which the files are written.

    Raises:
        UserCodeError: It cannot be imported: a module is missing, the file raises an error, or it has no such function.
    """
    if reference.in_file is not None:
        file, name = reference.in_file
        package = _package(reference.code, work)
        module = _import(reference, f"{package}.{'.'.join(Path(file).with_suffix('').parts)}", file)
    elif reference.in_package is not None:
        dotted, name = reference.in_package
        module = _import(reference, dotted, dotted)
    else:
        raise UserCodeError(f"function {reference.function!r} is a ready one: there is nothing to import")
    function = getattr(module, name, None)
    if function is None:
        raise UserCodeError(f"function {reference.function!r}: {reference.function.rpartition(':')[0]} has no {name!r}")
    if not callable(function):
        raise UserCodeError(
            f"function {reference.function!r}: of type {type(function).__name__}, which cannot be called: name a function"
        )
    return function  # type: ignore[no-any-return]


def write_code(code: Mapping[str, str], folder: Path) -> None:
    """Write files of the user.

    Args:
        code: Texts by relative path.
        folder: Where they go.
    """
    for name, source in code.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may share the folder; what is there is the same text.
        if not path.exists():
            with written_whole(path) as partial:
                partial.write_text(source, encoding="utf-8")


def _package(code: Mapping[str, str], work: Path) -> str:
    """Write files, and return the name of the package that has them as modules."""
    digest = hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()[:16]
    name, folder = f"{_PREFIX}{digest}", (work / "code" / digest).absolute()
    write_code(code, folder)
    package = sys.modules.setdefault(name, ModuleType(name))
    package.__path__ = [str(folder)]  # the folder of an earlier import may be gone
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    return name


def _import(reference: UserCode, name: str, shown: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name).removeprefix(f"{name.partition('.')[0]}." if name.startswith(_PREFIX) else "")
        itself = f"{name}.".startswith(f"{missing}.")
        if _is_quoted(missing, reference.code):
            raise UserCodeError(
                f"function {reference.function!r}: {shown} imports {missing} by its name at run time, which finds installed modules only: "
                f"write `import {missing}` for a file beside it, or install it where the stage runs"
            ) from error
        raise UserCodeError(
            f"function {reference.function!r}: "
            + (
                f"there is no module {missing} here"
                if itself
                else f"{shown} imports {missing}, which is not installed here"
            )
            + ": `pip install` it where a run is local; on a cluster add it to the image of the stage (images/)"
        ) from error
    except SystemExit as error:
        raise UserCodeError(f"function {reference.function!r}: {shown} ends the process when it is imported") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file of the user's can raise whatever Python can
        raise UserCodeError(
            f"function {reference.function!r}: {shown} cannot be imported: {place(error, reference)}{said(error)}"
        ) from error


def _is_quoted(module: str, code: Mapping[str, str]) -> bool:
    """Return whether source files contain the name of a module as a string, like `importlib.import_module("helper")`."""
    return any(f"{quote}{module}{quote}" in source for source in code.values() for quote in "'\"")


def said(error: BaseException) -> str:
    """Return what an error of the user's says, in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # its class is the user's, too
        text = ""
    if isinstance(error, ModuleNotFoundError):
        text += " (a file beside the function's is found by an import statement, and not by its name at run time)"
    if isinstance(error, FileNotFoundError):
        text += " (only Python files beside a function go along with it: name any other by its whole path)"
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__


def place(error: BaseException, reference: UserCode) -> str:
    """Return the last line of the user's that an error passed through, as `rewards.py, line 3: `; nothing where there is none."""
    found, trace = "", error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        name = next((name for name in reference.code if path.as_posix().endswith(f"/{name}")), None)
        if name is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(_PREFIX):
            found = f"{name}, line {trace.tb_lineno}: "
        trace = trace.tb_next
    return found


class _Finder(MetaPathFinder):
    """Finds modules of the packages that `_package` makes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how a module is loaded; none where it is no file of the user's."""
        if not fullname.startswith(_PREFIX) or path is None:
            return None
        base = Path(next(iter(path)), fullname.rpartition(".")[2])
        package, module = base / "__init__.py", base.with_name(f"{base.name}.py")
        if package.is_file():
            loader = _Loader(fullname, str(package))
            return spec_from_file_location(fullname, package, loader=loader, submodule_search_locations=[str(base)])
        if module.is_file():
            return spec_from_file_location(fullname, module, loader=_Loader(fullname, str(module)))
        if base.is_dir():
            folder = ModuleSpec(fullname, None, is_package=True)
            folder.submodule_search_locations = [str(base)]
            return folder
        return None


class _Loader(SourceFileLoader):
    """Runs a file in which absolute imports find what is beside it first."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the file."""
        package = module.__name__.partition(".")[0]
        (folder,) = sys.modules[package].__path__
        own = tops(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.py"))

        def find(
            name: str,
            globals: Mapping[str, object] | None = None,
            locals: Mapping[str, object] | None = None,
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> ModuleType:
            top = name.partition(".")[0]
            if level or top not in own:
                return builtins.__import__(name, globals, locals, fromlist or (), level)
            found = builtins.__import__(f"{package}.{name}", globals, locals, fromlist or (), 0)
            return found if fromlist else sys.modules[f"{package}.{top}"]

        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": find}
        super().exec_module(module)
