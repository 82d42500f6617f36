"""The training stage with vLLM as its engine, in a process of its own; writes the replay error of each rollout batch."""

import json
import os
import sys
import urllib.request
from pathlib import Path

from ngrpo.config import NGRPOTrainingConfig
from ngrpo.environment import METRICS_PORT
from ngrpo.stages import ngrpo_training
from ngrpo.stages.context import Context
from ngrpo.training import policy_optimization
from ngrpo.training.policy_optimization import train_policy
from ngrpo.training.rollout_batch import RolloutBatch
from replay import replay_error
from rewards import LengthReward
from tiny import mixer_for

ERRORS = []
SCRAPED = []


def watched(*, model, config, observers, **arguments):
    def replay(batch: RolloutBatch) -> dict[str, float]:
        version = batch.rollouts[0].records.index_version
        # An index of the weights as they are now: it is what the trainer's must be at every batch.
        mixer = mixer_for(model, "neighbor", config.mixing.rate, version=version)
        model.eval()
        ERRORS.append(replay_error(model, batch.prompts, batch.rollouts, mixer, config.rollout.temperature))
        model.train()
        with urllib.request.urlopen(f"http://127.0.0.1:{os.environ[METRICS_PORT]}/metrics", timeout=5) as answer:
            SCRAPED.append(answer.read().decode())
        return {}

    return train_policy(model=model, config=config, observers=[*observers, replay], **arguments)


def main() -> None:
    policy_optimization.CorrectnessReward = LengthReward
    ngrpo_training.train_policy = watched
    root = Path(sys.argv[1])
    config = NGRPOTrainingConfig.model_validate_json((root / "config.json").read_text())
    inputs = {name: root / name for name in ("dataset", "neighbor_index", "warm_start")}
    (root / "output").mkdir()
    ngrpo_training.run(config, inputs, root / "output", Context(root / "work"))
    (root / "errors.json").write_text(json.dumps(ERRORS))
    (root / "scraped.json").write_text(json.dumps(SCRAPED))
    (root / "modules.json").write_text(json.dumps(sorted(sys.modules)))


if __name__ == "__main__":
    main()
