"""From configuration, index and tokenizer to the `Mixer` that an engine uses."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ngrpo.config import MixingConfig
from ngrpo.errors import ConfigError
from ngrpo.mixing.mixer import Mixer
from ngrpo.neighbors.index import NeighborIndex


def build_mixer(config: MixingConfig, index: NeighborIndex, end_marker: list[int]) -> Mixer | None:
    """Return the mixer of a configuration, or none where it asks for no mixing.

    Args:
        config: Settings of mixing.
        index: Index to take neighbors from, on the device of the model.
        end_marker: See `end_marker_ids`.

    Raises:
        ConfigError: The index holds too few neighbors for `config.k`.
    """
    if config.strategy == "token":
        return None
    if config.k > index.neighbors.shape[1] + 1:
        raise ConfigError(
            f"mixing.k={config.k} needs {config.k - 1} neighbors but the index holds {index.neighbors.shape[1]}: "
            "lower mixing.k or rebuild the index with more neighbors.candidates"
        )
    gaussian = config.strategy == "gaussian"
    return Mixer(
        strategy=config.strategy,
        rate=config.rate,
        k=1 if gaussian else config.k,
        neighbors=index.neighbors,
        eligible=index.eligible,
        index_version=index.version,
        end_marker=end_marker,
        noise_std=config.noise_std if gaussian else 0.0,
    )


def end_marker_ids(config: MixingConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of the marker after which mixing ends; empty when there is none.

    Raises:
        ConfigError: The tokenizer cannot write the marker.
    """
    if config.end_marker is None:
        return []
    ids: list[int] = tokenizer.encode(config.end_marker, add_special_tokens=False)
    if not ids or tokenizer.decode(ids).strip() != config.end_marker.strip():
        raise ConfigError(
            f"mixing.end_marker={config.end_marker!r} cannot be written with this tokenizer: "
            "choose a text it knows, or null for mixing to the end"
        )
    return ids
