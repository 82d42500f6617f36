"""The strategy of ten lines that the documentation shows, set up as a preset's would be."""

import re
from pathlib import Path

from ngrpo.config.mixing import MixingConfig
from ngrpo.mixing.mixer import Mixer
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.configured_mixer import build_mixer
from tiny import eligible

PAGE = Path(__file__).parents[1] / "docs" / "strategies.md"


def documented_code() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return code


def own_mixing(directory: Path, **settings) -> MixingConfig:
    """The settings of the documented strategy, whose file is written there."""
    (directory / "mine.py").write_text(documented_code(), encoding="utf-8")
    return MixingConfig.model_validate(
        {"strategy": f"{directory / 'mine.py'}:TopTokens", "k": 4, "rate": 0.5, "end_marker": None} | settings
    )


def own_mixer(model, directory: Path) -> Mixer:
    index = NeighborIndex.build(model.get_input_embeddings().weight, eligible(), candidates=1, block_rows=64)
    mixer = build_mixer(own_mixing(directory), index, None)
    assert mixer is not None
    return mixer
