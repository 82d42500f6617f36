"""What a person filled into Kubeflow's run form, read as the command line reads its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ngrpo.config import RunConfig, load_config, validate
from ngrpo.config.reading import override
from ngrpo.data.gated import without_benchmarks
from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.planning.requests import PRESETS, closed_there, preset_file, preset_names

BASES = ("", "champion")


@dataclass(frozen=True)
class Requested:
    """The parameters of the form, and what the form was made with."""

    preset: str
    seed: int
    overrides: Sequence[str]
    base: str
    cluster: Mapping[str, Any]
    """The section `cluster` of every run, as it was when the form was made."""
    presets: Mapping[str, Mapping[str, Any]]
    """By name, the configurations of presets that are files of their own: a pod has the package's only."""

    def config(self) -> tuple[RunConfig, list[str]]:
        """Return the configuration that was asked for, and the benchmarks that it leaves out because pods have no token of the hub.

        Raises:
            ConfigError: A parameter cannot be; a line for each, as the command line says it.
        """
        problems = []
        if self.base not in BASES:
            problems.append(
                f"base {self.base!r}: unknown; write champion, or leave it empty for the preset's base model"
            )
        if not isinstance(self.overrides, list | tuple) or not all(isinstance(each, str) for each in self.overrides):
            problems.append(
                f'overrides {self.overrides!r}: write a JSON list of texts SECTION.FIELD=VALUE, as in ["training.steps=20"]'
            )
        if problems:
            raise ConfigError("\n".join(problems))
        tree = self._preset().model_dump(mode="json") | {"cluster": dict(self.cluster)}
        config = override(validate(RunConfig, tree), [*self.overrides, f"seed={self.seed}"])
        closed = closed_there(config)
        return (without_benchmarks(config, closed) if closed else config), closed

    def _preset(self) -> RunConfig:
        if self.preset in self.presets:
            return validate(RunConfig, self.presets[self.preset])
        known = preset_names()
        if self.preset not in known:
            raise ConfigError(
                f"preset {self.preset!r}: unknown; choose one of {', '.join(sorted({*known, *self.presets}))}; for a file of your own make "
                "the form anew (ngrpo form FILE)"
            )
        return load_config(preset_file(self.preset), presets=PRESETS)
