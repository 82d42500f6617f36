"""Keys of results: what a stage's result depends on, as one hash that is known before anything runs.

Results are input-addressed. The key of a stage covers its settings, the source code it can reach, the keys of its inputs
and, where a rerun was asked for, a token. Pinned data revisions are part of the settings.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import ngrpo
from ngrpo.config import Section

PACKAGE = Path(ngrpo.__file__).parent

# Their source, and that of modules below them, is not part of a code version. `config` holds settings and their validation, nothing
# that computes: what a stage gets from it is the validated values, and those are in the key. A changed default or a new field thus
# reruns the stages that read it, and no other. `errors` names failures, and a stage that fails leaves no result. `checkpoints` brings
# back what a stage saved, byte for byte.
TRANSPARENT = frozenset({"ngrpo.config", "ngrpo.errors", "ngrpo.storage.checkpoint_store"})

_DOTTED = re.compile(r"ngrpo(\.\w+)+")


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value: sorted names, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def config_json(config: Section) -> str:
    """Return the canonical JSON text of a stage's settings."""
    return canonical_json(config.model_dump(mode="json"))


def digest(text: str) -> str:
    """Return the first 32 hexadecimal digits of a text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def stage_key(
    stage: str,
    config: str,
    code_version: str,
    inputs: Mapping[str, str],
    rerun_token: str | None = None,
    *,
    content: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the key of a stage's result, 32 hexadecimal digits.

    Args:
        stage: Name of the stage.
        config: Canonical JSON of its settings (`config_json`).
        code_version: Hash of its source (`code_version`).
        inputs: Key of each input by the input's name.
        rerun_token: Any text that makes this result another one than that of the same inputs without it.
        content: Digest of each copy that it reads, by the setting that names it.
    """
    return digest(canonical_json([stage, config, code_version, dict(inputs), rerun_token, dict(content)]))


def code_version(module: str, root: Path = PACKAGE) -> str:
    """Return the hash of the source that a module can reach inside the package, 32 hexadecimal digits.

    Args:
        module: Dotted name of the module, for example `ngrpo.stages.prepare_data`.
        root: Folder of the package `ngrpo`.
    """
    return digest(canonical_json(source_files(module, root)))


@cache
def source_files(module: str, root: Path = PACKAGE) -> Mapping[str, str]:
    """Return the sha256 of each source file that a module can reach inside the package, by path relative to `root`.

    Reached is what is imported anywhere in a reached file, inside functions too, with the `__init__.py` of every package on
    the way, and what a text names in full (`"ngrpo.rollout.worker:Worker"`: a library loads it by that name). The block
    under `if __name__ == "__main__":` is left out, for it does not run in a pipeline.

    Raises:
        ModuleNotFoundError: The package has no such module.
    """
    if _path(module, root) is None:
        raise ModuleNotFoundError(f"{module}: no such module in {root}", name=module)
    found: dict[str, str] = {}
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or _is_transparent(name):
            continue
        seen.add(name)
        path = _path(name, root)
        if path is None:
            continue
        found[str(path.relative_to(root))], reached = _scan(path, name)
        waiting += reached
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return dict(sorted(found.items()))


def _is_transparent(module: str) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in TRANSPARENT)


def _path(module: str, root: Path) -> Path | None:
    """Return the file of a module, or none when the package has no such module."""
    base = root.joinpath(*module.split(".")[1:])
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


@cache
def _scan(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    """Return the sha256 of a source file and the dotted names of ours that it mentions, modules or not."""
    source = path.read_bytes()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = {name for node in _nodes(ast.parse(source, str(path))) for name in _mentions(node, package)}
    return hashlib.sha256(source).hexdigest(), tuple(sorted(name for name in names if _DOTTED.fullmatch(name)))


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a syntax tree without the block that runs only as a script."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "__name__ == '__main__'"):
            yield child
            yield from _nodes(child)


def _mentions(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value.partition(":")[0]
