"""Keys of results: what a stage's result depends on, as one hash that is known before anything runs.

Results are input-addressed. The key of a stage covers its settings, the source code it can reach, the versions of the libraries that
it declares, the content of what is local, the keys of its inputs and, where a rerun was asked for, a token. Pinned data revisions are
part of the settings. `docs/keys.md` has the rules at more length, and which file moves which key.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from typing_extensions import TypedDict  # pydantic cannot read that of typing before Python 3.12

import ngrpo
from ngrpo.config import Section
from ngrpo.storage.state import DamagedStateError, read_state, write_state

PACKAGE = Path(ngrpo.__file__).parent

_FRAME = "Runs a stage, or says where and how often: what the stage computes with is its settings and inputs, and those are in the key."
_TRANSFER = "Brings bytes from one place to another as they are, checked on the way, or fails."

TRANSPARENT: Mapping[str, str] = {
    "ngrpo.config": (
        "Holds settings and their validation, nothing that computes: what a stage gets from it is the validated values, and those are "
        "in the key. A changed default or a new field reruns the stages that read it, and no other."
    ),
    "ngrpo.section": "What settings are made of; see `ngrpo.config`.",
    "ngrpo.errors": "Names failures, and a stage that fails leaves no result.",
    "ngrpo.environment": (
        "Sets the variables that its callers name, and their source is in the key; takes credentials out of what is said."
    ),
    "ngrpo.ledger": "Measures and tells what results took; no stage computes with that.",
    "ngrpo.library": "For programs of users, named in the package so that they can import it from there: no stage runs it.",
    "ngrpo.report": (
        "Words and draws results, and writes the files of an artifact that only describe it; no stage reads those, and none computes "
        "with what is said."
    ),
    "ngrpo.tracking": (
        "Copies to MLflow what a stage has done. The only stage that reads it back is `model_promotion`, which is never cached."
    ),
    "ngrpo.signing": (
        "Vouches for what was made, and changes none of it. The only stage that signs is `model_promotion`, which is never cached."
    ),
    "ngrpo.storage.address": "Takes an address apart; the address is a setting or says where, never what.",
    "ngrpo.storage.artifacts": _TRANSFER,
    "ngrpo.storage.checkpoint_store": "Brings back what a stage saved, byte for byte.",
    "ngrpo.storage.conditional_writes": "Asks whether a service can hold a lock.",
    "ngrpo.storage.disk": "Words what is wrong with a disk; the write has failed.",
    "ngrpo.storage.inspection": _TRANSFER,
    "ngrpo.storage.lease": "Says whose turn it is.",
    "ngrpo.storage.manifest": "Says of a result which files it has; the files are as they were written, or are refused.",
    "ngrpo.storage.objects": _TRANSFER,
    "ngrpo.storage.patience": _TRANSFER,
    "ngrpo.storage.service_faults": "Words what is wrong with a service; the request has failed.",
    "ngrpo.storage.whole_files": "Puts a file in its place whole or not at all.",
    "ngrpo.storage.state": "Writes what it is given, whole or not at all, and gives back what was written, or fails.",
    # Other hashes are other keys: what was made under the old ones is found by none of the new ones.
    "ngrpo.stages.keys": "Makes keys: a change shows in the keys themselves.",
    "ngrpo.stages.libraries": "Makes parts of keys; see `ngrpo.stages.keys`.",
    "ngrpo.stages.attempt": _FRAME,
    "ngrpo.stages.context": _FRAME,
    "ngrpo.stages.declarations": _FRAME,
    "ngrpo.stages.execution": _FRAME,
    "ngrpo.stages.metering": _FRAME,
    "ngrpo.stages.process": _FRAME,
    "ngrpo.stages.soundness": "Refuses results with numbers that are not finite, and what is refused is no result.",
    "ngrpo.stages.standalone": _FRAME,
    "ngrpo.stages.step": _FRAME,
    "ngrpo.stages.supervision": _FRAME,
    "ngrpo.stages.surroundings": _FRAME,
    "ngrpo.stages.task": _FRAME,
    "ngrpo.stages.torchrun": _FRAME,
    "ngrpo.stages.torchrun_agent": _FRAME,
    "ngrpo.stages.tries": _FRAME,
}
"""Modules whose source, and that of their submodules, is not part of a code version, each with the reason why it cannot change what
later stages read. Modules that only they reach are not part of it either. `ngrpo.storage.digest` is, because its digests are in results.
"""
_TRANSPARENT = tuple(f"{name}." for name in TRANSPARENT)

_mentioned: dict[str, list[str]] = {}
"""Dotted names of this package that a source mentions, by the source's sha256 and package."""


class _Mentions(TypedDict):
    reader: str
    """sha256 of this file: another version may read other names from the same source."""
    names: dict[str, list[str]]


_DOTTED = re.compile(r"ngrpo(\.\w+)+")


def canonical_json(value: object) -> str:
    """Return the canonical JSON text of a value: sorted names, no spaces, no NaN."""
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
    libraries: Mapping[str, str],
    content: Mapping[str, str],
) -> str:
    """Return the key of a stage's result, 32 hexadecimal digits.

    Args:
        stage: Name of the stage.
        config: Canonical JSON of its settings (`config_json`).
        code_version: Hash of its source (`code_version`).
        inputs: Key of each input by the input's name.
        rerun_token: Any text; it makes the key differ from that of the same inputs without it.
        libraries: Version of each library that decides the result (`ngrpo.stages.libraries`).
        content: Digest of each copy that it reads, by the setting that names it.
    """
    return digest(
        canonical_json([stage, config, code_version, dict(inputs), rerun_token, dict(libraries), dict(content)])
    )


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

    A file is reached if a reached file imports it anywhere, inside functions too, or names it in full in a text: a library loads
    `"ngrpo.rollout.worker:Worker"` or `"ngrpo.rollout.worker.Worker"` by that name. The `__init__.py` of every package on the way
    is reached too. Names put together at run time are not seen; `tests/pipeline/test_closure.py` allows none.

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
        if path is not None:
            found[path.relative_to(root).as_posix()], reached = _scan(path, name)
            waiting += reached
        # Importing a module runs its packages first; for other names, such as a class, the module that holds it is reached.
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return dict(sorted(found.items()))


def _is_transparent(module: str) -> bool:
    return f"{module}.".startswith(_TRANSPARENT)


@cache
def _path(module: str, root: Path) -> Path | None:
    """Return the file of a module, or none if the package has no such module."""
    base = root.joinpath(*module.split(".")[1:])
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


@contextmanager
def mentions_kept(file: Path) -> Iterator[None]:
    """Cache in a file which names the sources mention: reading them all takes longer than the rest of a plan.

    Args:
        file: The cache; created again if damaged or missing.
    """
    reader = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    try:
        kept = read_state(file, _Mentions, cure="it is made anew")
    except DamagedStateError:  # only a cache
        kept = None
    if kept is not None and kept["reader"] == reader:
        _mentioned.update(kept["names"])
    before = len(_mentioned)
    yield
    if kept is None or len(_mentioned) > before or kept["reader"] != reader:
        write_state(file, {"reader": reader, "names": _mentioned})


@cache
def _scan(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    """Return the sha256 of a source file and the dotted names of this package in it, modules or not."""
    source = path.read_bytes()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = hashlib.sha256(source).hexdigest()
    names = _mentioned.get(f"{found} {package}")
    if names is None:
        every = {name for node in ast.walk(ast.parse(source, str(path))) for name in _mentions(node, package)}
        names = _mentioned[f"{found} {package}"] = sorted(name for name in every if _DOTTED.fullmatch(name))
    return found, tuple(names)


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
