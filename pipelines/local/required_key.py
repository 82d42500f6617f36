"""The key that a model must be signed with: that of the run that made it, not of whichever run is the latest."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.config.signing import SigningConfig
from ngrpo_kfp.pipelines.local.runs import RunSettings, run_directories, settings_of_runs
from ngrpo_kfp.pipelines.local.workspace import Workspace


@dataclass(frozen=True)
class RequiredKey:
    """`signing.public_key` of the settings that count for a model, and whose they are."""

    signing: SigningConfig
    whose: str


def required_key(own: RunSettings | None, model_name: str, workspace: Workspace) -> RequiredKey:
    """Return the key that counts for a model.

    It is that of the run that made the model. Where that run names none, or no run here made it, it is that of the newest run here of the
    same registered model, so that a tag in the registry that leads to another run does not do away with the key.

    Args:
        own: The configuration that the model was made by; none where it is not known.
        model_name: The registered model.
        workspace: Where the runs are.
    """
    if own is not None and own.config.signing.public_key is not None:
        return RequiredKey(own.config.signing, f"run {own.name}, which made it")
    runs = settings_of_runs(run_directories(workspace))
    newest = next((each for each in runs if each.config.promotion.model_name == model_name), None)
    if newest is None:
        return RequiredKey(SigningConfig(), "no run")
    return RequiredKey(newest.config.signing, f"run {newest.name}, the newest of {model_name}")
