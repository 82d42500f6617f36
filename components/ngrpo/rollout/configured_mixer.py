"""From configuration, index and tokenizer to the `Mixer` that an engine uses."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ngrpo.config import MixingConfig
from ngrpo.errors import ConfigError
from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.strategies import Token
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.configured_strategy import load_strategy, strategy_source
from ngrpo.rollout.token_bytes import token_bytes


def build_mixer(config: MixingConfig, index: NeighborIndex, end_marker: EndMarker | None) -> Mixer | None:
    """Return the mixer of a configuration, or none if mixing is off.

    Args:
        config: Settings of mixing.
        index: Index to take neighbors from, on the device of the model.
        end_marker: See `configured_end_marker`; on that device too.

    Raises:
        ConfigError: The index holds too few neighbors for `config.k`, or the strategy is none.
        UserCodeError: The strategy's code cannot be loaded.
    """
    source = strategy_source(config)
    strategy = load_strategy(source)
    if isinstance(strategy, Token):
        return None
    if strategy.neighbors_needed > index.neighbors.shape[1]:
        raise ConfigError(
            f"mixing.k={strategy.k} needs {strategy.neighbors_needed} neighbors but the index holds {index.neighbors.shape[1]}: "
            "lower mixing.k or rebuild the index with more neighbors.candidates"
        )
    if strategy.k > len(index.eligible):
        raise ConfigError(f"mixing.k={strategy.k}: the model has {len(index.eligible)} tokens; lower mixing.k")
    return Mixer(
        strategy=strategy,
        rate=config.rate,
        neighbors=index.neighbors,
        eligible=index.eligible,
        index_version=index.version,
        end_marker=end_marker,
        source=source,
    )


def configured_end_marker(config: MixingConfig, tokenizer: PreTrainedTokenizerBase, rows: int) -> EndMarker | None:
    """Return the text after which mixing ends; none when there is none.

    Args:
        config: Settings of mixing.
        tokenizer: Tokenizer of the model.
        rows: Rows of the model's embedding matrix.

    Raises:
        ConfigError: The tokenizer cannot write the marker.
    """
    if config.end_marker is None:
        return None
    texts = token_bytes(tokenizer)[:rows]
    # The matrix may have rows without a token, which add nothing to a text.
    marker = EndMarker.of(config.end_marker, texts + [b""] * (rows - len(texts)))
    if not marker.reachable():
        raise ConfigError(
            f"mixing.end_marker={config.end_marker!r} cannot be written with this tokenizer: "
            "choose a text it knows, or null for mixing to the end"
        )
    return marker
