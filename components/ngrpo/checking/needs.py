"""Cheap check of what stages ask for: is it as much as they need?"""

from __future__ import annotations

from collections.abc import Iterator

from ngrpo.checking.findings import Finding
from ngrpo.config import RunConfig
from ngrpo.config.stages import stages_of
from ngrpo.sizing.fit import misfits
from ngrpo.sizing.model_shape import model_shape


def check_needs(config: RunConfig) -> Iterator[Finding]:
    """Check that GPUs can hold what stages need. What pods ask for is worth a look alone: on one's own machine nobody asks for it."""
    if model_shape(config.model.source) is None:
        yield Finding("ok", "resources", "the shape of the model is not known here: what stages need was not computed")
        return
    found = misfits(config, stages_of(config))
    for misfit in found:
        what = f"{misfit.setting}{misfit.found}"
        yield Finding("warning" if misfit.on_cluster else "error", misfit.setting, what, misfit.cure)
    if not found:
        yield Finding("ok", "resources", "every stage asks for as much as it needs")
