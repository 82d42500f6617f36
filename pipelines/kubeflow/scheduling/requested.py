"""Parameters of Kubeflow's run form, read in the same way as arguments of the command line."""

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
    """The parameters of the form, and the settings that it was created with."""

    preset: str
    seed: int
    overrides: Sequence[str]
    base: str
    cluster: Mapping[str, Any]
    """The section `cluster` of every run, from when the form was created."""
    presets: Mapping[str, Mapping[str, Any]]
    """Configurations, by name, of presets that are not in the package, which a pod could not read."""

    def config(self) -> tuple[RunConfig, list[str]]:
        """Return the requested configuration, and the benchmarks left out because pods have no token for the hub.

        Raises:
            ConfigError: Parameters are invalid; a line for each, as on the command line.
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
