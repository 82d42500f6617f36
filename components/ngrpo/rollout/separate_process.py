"""A process that generates rollouts while another one trains: started by `ngrpo.rollout.separate_engine`, whose messages it answers."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from ngrpo.rollout.in_child_process import Inbox, serve

if TYPE_CHECKING:
    from ngrpo.mixing.mixer import Mixer
    from ngrpo.rollout.separate_messages import NewMixer


def main(descriptor: int) -> None:
    """Run the process until it is told to end.

    Args:
        descriptor: Socket to the process that started this one.
    """
    serve(descriptor, _work)


def _work(inbox: Inbox, send: Callable[[object], None]) -> None:
    first = inbox.take(wait=True)
    if first is None:
        return
    # Imported late because it takes seconds: by now this process already watches whether its parent is alive.
    import torch
    from safetensors.torch import load_file

    from ngrpo.rollout.engine_from_files import engine_of
    from ngrpo.rollout.separate_messages import NewMixer, NewWeights, Prompts

    task = pickle.loads(first)
    torch.set_num_threads(task.threads)
    mixer: Mixer | None = None
    with closing(engine_of(task)) as engine:
        while (message := inbox.take(wait=True)) is not None:
            match pickle.loads(message):
                case NewWeights(path):
                    engine.load_weights(load_file(path).items())
                    send(b"loaded")
                case NewMixer() as news:
                    mixer = _mixer(news, mixer)
                case Prompts(prompts, seeds, sampling, mixed):
                    rollouts = engine.generate(prompts, seeds, sampling, mixer if mixed else None)
                    send(pickle.dumps(rollouts))


def _mixer(news: NewMixer, known: Mixer | None) -> Mixer:
    """Return the mixer that was sent, on the device that generates; `known` is the one before it."""
    from dataclasses import replace

    import torch

    from ngrpo.mixing.end_marker import EndMarker
    from ngrpo.mixing.mixer import Mixer
    from ngrpo.rollout.configured_strategy import load_strategy

    strategy = load_strategy(news.source)
    if news.tables is None:
        assert known is not None, "tables come with the first mixer"
        return replace(known, strategy=strategy, rate=news.rate, index_version=news.index_version, source=news.source)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    neighbors, eligible, transitions = news.tables
    return Mixer(
        strategy=strategy,
        rate=news.rate,
        neighbors=neighbors.to(device),
        eligible=eligible.to(device),
        index_version=news.index_version,
        end_marker=None if transitions is None else EndMarker(transitions.to(device)),
        source=news.source,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
