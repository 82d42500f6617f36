"""Layouts served by vLLM one after the other, each before and after new weights: a line of JSON with the rollouts of each.

A script, for vLLM replaces functions of torch for a whole process. Each layout is served in a fork of it, since vLLM can be started once.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

PROMPTS = [[2, 5, 9, 12, 3], [2, 7, 3]]
TEMPERATURE = 0.7
SECONDS = 300


def shaken(directory: Path) -> Path:
    """The directory with the other weights of a model."""
    return directory.with_name(f"{directory.name}.shaken")


def serve(directory: Path) -> list[list[tuple[list[int], list[float]]]]:
    """Generate with the weights of a directory, then with the other ones; of each response its tokens and log-probabilities."""
    from safetensors.torch import load_file

    from ngrpo.rollout.engine import Sampling
    from ngrpo.rollout.vllm.engine import VLLMEngine

    engine = VLLMEngine(
        directory,
        [1],
        max_length=64,
        batch_size=2,
        dtype="float32",
        in_process=True,
        kv_cache_memory_bytes=1 << 26,
    )
    first = engine.generate(PROMPTS, [0, 1], Sampling(8, TEMPERATURE))
    engine.load_weights(load_file(shaken(directory) / "model.safetensors").items())
    second = engine.generate(PROMPTS, [0, 1], Sampling(8, TEMPERATURE))
    return [[(one.token_ids, one.logprobs) for one in rollouts] for rollouts in (first, second)]


def main(root: Path) -> None:
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    import vllm.v1.engine.llm_engine  # noqa: F401 - once, for all forks
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()
    for directory in sorted(path for path in root.iterdir() if path.suffix != ".shaken"):
        result = directory.with_suffix(".json")
        if os.fork() == 0:
            signal.alarm(SECONDS)
            try:
                result.write_text(json.dumps(serve(directory)))
            except BaseException:
                result.write_text(json.dumps(traceback.format_exc()[-600:]))
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
