"""Layouts that are trained for a step on rollouts of vLLM, one after the other: what came out of each, in a file of JSON.

A script, for vLLM replaces functions of torch for a whole process. Each layout has a fork of it, since vLLM can be started once.
"""

import json
import os
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from one_step import take_a_step

SECONDS = 300


def main(root: Path) -> None:
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    import vllm.v1.engine.llm_engine  # noqa: F401 - once, for all forks
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()
    for directory in sorted(path for path in root.iterdir() if path.is_dir()):
        outcome = directory.with_suffix(".json")
        if os.fork() == 0:
            signal.alarm(SECONDS)
            try:
                outcome.write_text(json.dumps(asdict(take_a_step(directory, directory / "step", "vllm"))))
            except BaseException:
                outcome.write_text(json.dumps(traceback.format_exc()[-600:]))
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
