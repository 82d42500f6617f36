"""The public key that must have signed a model: that of the run that trained it, not that of the latest run."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.config.signing import SigningConfig
from ngrpo_kfp.pipelines.local.runs import RunSettings, run_directories, settings_of_runs
from ngrpo_kfp.pipelines.local.workspace import Workspace


@dataclass(frozen=True)
class RequiredKey:
    """The signing settings that apply to a model, and the run that they come from."""

    signing: SigningConfig
    whose: str


def required_key(own: RunSettings | None, model_name: str, workspace: Workspace) -> RequiredKey:
    """Return the key that applies to a model.

    It is that of the run that trained the model. If that run has none, or is not in the workspace, it is that of the newest run of the same
    registered model. So changing the registry's tags to point to another run does not lift the requirement.

    Args:
        own: The configuration of the run that trained the model; None if unknown.
        model_name: The registered model.
        workspace: Workspace with the runs.
    """
    if own is not None and own.config.signing.public_key is not None:
        return RequiredKey(own.config.signing, f"run {own.name}, which made it")
    runs = settings_of_runs(run_directories(workspace))
    newest = next((each for each in runs if each.config.promotion.model_name == model_name), None)
    if newest is None:
        return RequiredKey(SigningConfig(), "no run")
    return RequiredKey(newest.config.signing, f"run {newest.name}, the newest of {model_name}")
