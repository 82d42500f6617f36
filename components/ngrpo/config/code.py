"""Functions of the user: a file beside the preset, whose text travels with the settings, or a function of an installed package."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from ngrpo.config.located import Located, absolute, locate
from ngrpo.config.source_files import LARGEST_CODE, TOO_LARGE, defined, parse, read_code
from ngrpo.errors import ConfigError
from ngrpo.section import Line, Section

_IN_FILE = re.compile(r"(?P<file>.*\.py):(?P<name>[^\W\d]\w*)", re.DOTALL)
IN_PACKAGE = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
"""A function of an installed package."""
_STEM = re.compile(r"[\w-]+")
_FORMS = "write file.py:NAME for a function of a file beside the preset, or package.module:NAME for one of an installed package"


class UserCode(Section):
    """A function, by reference. A subclass names the ready ones (`ready`), for which no code is needed."""

    ready: ClassVar[Collection[str]] = ()

    function: Line
    """`file.py:NAME`, a file relative to the preset; `package.module:NAME` of a package that is installed where stages run; or the name
    of a ready one."""
    code: Annotated[dict[str, str], Field(max_length=1000)] = {}
    """Set automatically: the text of the file, and of modules beside it that it imports, by path relative to the file's folder."""

    @property
    def in_file(self) -> tuple[str, str] | None:
        """The file, a key of `code`, and the name of the function in it; none where it is in no file."""
        match = _IN_FILE.fullmatch(self.function)
        return None if match is None else (match["file"], match["name"])

    @property
    def in_package(self) -> tuple[str, str] | None:
        """The module and the name of the function in it; none where it is in no package."""
        match = IN_PACKAGE.fullmatch(self.function)
        return None if match is None or self.in_file else (match["module"], match["name"])

    @model_validator(mode="before")
    @classmethod
    def _with_code(cls, tree: Any) -> Any:
        """Read the file, unless the settings have its text already: then they were loaded before, perhaps on another machine."""
        function = tree.get("function") if isinstance(tree, dict) else None
        match = _IN_FILE.fullmatch(function) if isinstance(function, str) else None
        if not isinstance(function, str) or match is None:
            return tree
        code = tree.get("code")
        if not isinstance(code, dict | None) or (code and match["file"] in code):
            return tree
        # The whole text knows the directory of the preset, and its parts do not.
        named = locate(match["file"], function.directory) if isinstance(function, Located) else match["file"]
        file = Path(absolute(named))
        try:
            if _STEM.fullmatch(file.stem) is None:
                raise ValueError("the name of a file has only letters, digits, '_' and '-' before .py: rename it")
            if not file.exists():
                raise ValueError(f"no such file: {match['file']!r} is relative to {str(file.parent)!r}")
            found = read_code(file)
        except (ConfigError, OSError, ValueError) as error:
            raise ValueError(f"function={str(function)!r}: {error}") from error
        return tree | {"function": f"{file.name}:{match['name']}", "code": found}

    @model_validator(mode="after")
    def _usable(self) -> Self:
        problem = self._problem()
        if problem is not None:
            raise ValueError(f"function={self.function!r}: {problem}")
        return self

    def _problem(self) -> str | None:
        if self.in_file is None:
            if self.code:
                return "code goes with a function of a file only; leave it out"
            if self.in_package is not None and self.in_package[0].partition(".")[0] in ("ngrpo", "ngrpo_kfp"):
                return "a module of ngrpo itself, whose code no key would cover: name a ready one, or copy the function into a file"
            if self.in_package is None and self.function not in self.ready:
                close = difflib.get_close_matches(self.function, self.ready, n=1)
                known = f"no ready one ({', '.join(self.ready)})" if self.ready else "no reference to a function"
                return f"{known}{f'; did you mean {close[0]!r}?' if close else ''}; {_FORMS}"
            return None
        if sum(map(len, self.code.values())) > LARGEST_CODE:
            return TOO_LARGE
        for name, source in self.code.items():
            path = PurePosixPath(name)
            if path.suffix != ".py" or not all(_STEM.fullmatch(part) for part in path.with_suffix("").parts):
                return f"code.{name!r}: the path of a Python file, relative to the folder of the function's file"
            tree = parse(name, source)
            if name == self.in_file[0]:
                names = defined(tree)
                if names is not None and self.in_file[1] not in names:
                    close = difflib.get_close_matches(self.in_file[1], names, n=1)
                    return f"{name} defines no {self.in_file[1]!r}" + (
                        f"; did you mean {close[0]!r}?" if close else ": define it there, at the top level of the file"
                    )
        return None


def references(section: Section, above: tuple[str, ...] = ()) -> Iterator[tuple[str, UserCode]]:
    """Yield the functions of the user in a part of the settings, each with the dotted name of its setting."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        tables = [((*above, name, str(key)), each) for key, each in value.items()] if isinstance(value, Mapping) else []
        for path, item in tables or [((*above, name), value)]:
            if isinstance(item, UserCode):
                yield ".".join(path), item
            if isinstance(item, Section):
                yield from references(item, path)


def without_code(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, as JSON, as they stand in a preset: without the texts of the files that it names."""
    return {
        name: without_code(value) if isinstance(value, Mapping) else value
        for name, value in tree.items()
        if not (name == "code" and holds_code(tree))
    }


def with_digests(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, as JSON, with a short digest in place of the text of every file, for what keeps records of runs."""
    short = {name: with_digests(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
    if holds_code(tree):
        short["code"] = {name: _digest(source) for name, source in tree["code"].items()}
    return short


def holds_code(tree: Mapping[str, Any]) -> bool:
    """Say whether a table of settings, as JSON, is a reference to a function with its files."""
    return isinstance(tree.get("function"), str) and isinstance(tree.get("code"), Mapping)


def _digest(source: str) -> str:
    return f"sha256:{hashlib.sha256(source.encode()).hexdigest()[:12]}"
