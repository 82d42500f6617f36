"""Check cheaply that stages request enough resources."""

from __future__ import annotations

from collections.abc import Iterator

from ngrpo.checking.findings import Finding
from ngrpo.config import RunConfig
from ngrpo.config.stages import stages_of
from ngrpo.sizing.fit import misfits
from ngrpo.sizing.model_shape import model_shape


def check_needs(config: RunConfig) -> Iterator[Finding]:
    """Check that stages fit into their GPUs, and that pods request enough. The latter is only a warning: a local run has no pods."""
    if model_shape(config.model.source) is None:
        yield Finding(
            "ok", "resources", "the shape of the model is not known here: the needs of stages were not computed"
        )
        return
    found = misfits(config, stages_of(config))
    for misfit in found:
        what = f"{misfit.setting}{misfit.found}"
        yield Finding("warning" if misfit.on_cluster else "error", misfit.setting, what, misfit.cure)
    if not found:
        yield Finding("ok", "resources", "every stage requests as much as it needs")
