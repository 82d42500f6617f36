"""Run stages with the vLLM engine in a separate process; writes the prompts and end tokens that vLLM got, and what it generated."""

import json
import sys
from pathlib import Path

from ngrpo.config import RunConfig, select
from ngrpo.rollout.vllm.engine import VLLMEngine
from ngrpo.stages.context import Context
from ngrpo.stages.declarations import STAGES

SEEN: dict[str, list] = {"prompts": [], "ends": [], "responses": []}


class WatchedEngine(VLLMEngine):
    def __init__(self, model, eos_token_ids, **settings):
        SEEN["ends"].append(sorted(eos_token_ids))
        super().__init__(model, eos_token_ids, **settings)

    def generate_each(self, prompts, *arguments):
        rollouts = super().generate_each(prompts, *arguments)
        SEEN["prompts"] += [list(prompt) for prompt in prompts]
        SEEN["responses"] += [list(rollout.token_ids) for rollout in rollouts]
        return rollouts

    def submit(self, number, prompts, *arguments):
        SEEN["prompts"] += [list(prompt) for prompt in prompts]
        super().submit(number, prompts, *arguments)

    def step(self):
        ended = super().step()
        SEEN["responses"] += [list(rollout.token_ids) for _, rollouts in ended for rollout in rollouts]
        return ended


def main(root: Path, stages: dict[str, dict[str, str]]) -> None:
    """Run stages below a directory that has the settings of the run.

    Args:
        root: Its `config.json` has the settings.
        stages: Names of the stages, each with the stages that its inputs come from.
    """
    import ngrpo.rollout.vllm.engine as module

    module.VLLMEngine = WatchedEngine
    config = RunConfig.model_validate_json((root / "config.json").read_text())
    for stage, sources in stages.items():
        for folder in (root / stage, root / "work" / stage):
            folder.mkdir(parents=True)
        inputs = {name: root / source for name, source in sources.items()}
        settings = select(config, STAGES[stage].config)
        STAGES[stage].function()(settings, inputs, root / stage, Context(root / "work" / stage))
    (root / f"seen-{stage}.json").write_text(json.dumps(SEEN))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
