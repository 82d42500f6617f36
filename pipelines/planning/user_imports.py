"""Check before a run whether the stages have what the user's files import, so that no stage fails after hours of work."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec

from ngrpo.config import RunConfig, select
from ngrpo.config.code import UserCode, references
from ngrpo.config.source_files import foreign_imports
from ngrpo.errors import ConfigError
from ngrpo.stages.declarations import DECLARED
from ngrpo.stages.libraries import canonical, distributions_of, runs_there


def missing_imports(code: Mapping[str, str], distributions: Collection[str]) -> list[str]:
    """Return the top-level modules that files import and that no given distribution provides, in alphabetical order.

    The distribution of a module is looked up among those installed here; a module that is not installed is looked up by its own name.

    Args:
        code: Texts of the files by relative path.
        distributions: Canonical names of the distributions.
    """
    return sorted(
        module
        for module in foreign_imports(code)
        if not any(canonical(name) in distributions for name in distributions_of(module))
    )


def user_code_of(config: RunConfig, stage: str) -> Iterator[tuple[str, UserCode]]:
    """Yield the functions of the user that a stage runs, each with its setting."""
    declared = DECLARED[stage]
    for setting, reference in references(select(config, declared.config)):
        if runs_there(setting, declared.libraries):
            yield setting, reference


def require_imports(config: RunConfig, stages: Collection[str]) -> None:
    """Refuse a run on this machine whose stages would import what is not installed here.

    Args:
        config: Configuration of the run.
        stages: The stages that are to run.

    Raises:
        ConfigError: A line for each module.
    """
    problems: dict[str, None] = {}
    for stage in stages:
        for setting, reference in user_code_of(config, stage):
            for module in sorted(foreign_imports(reference.code)):
                if find_spec(module) is None:
                    line = f"{setting}: {reference.function} imports {module}, which is not installed here: pip install it, or leave it out"
                    problems[line] = None
    if problems:
        raise ConfigError("\n".join(problems))
