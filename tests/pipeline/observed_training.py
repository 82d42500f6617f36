"""The training stage in processes of its own, with an observer of its rollout batches.

A test calls `start`; each process runs the function `main` of a script, which calls `run` with its observer.
"""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, DistributedType
from safetensors.torch import save_file

from forks import Script
from ngrpo.config import NGRPOTrainingConfig
from ngrpo.stages import ngrpo_training
from ngrpo.stages.context import Context
from ngrpo.stages.torchrun import join
from ngrpo.training import policy_optimization
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from ngrpo.training.policy_weights import merged_parameters
from ngrpo.training.rollout_batch import RolloutBatch
from rewards import LengthReward


def start(
    script: str, root: Path, output: Path, processes: int, engine: str = "transformers", way: str = "copied"
) -> list[Script]:
    """Start the processes of a training.

    Args:
        script: Module whose `main` each process runs.
        root: Directory of the inputs, with `config.json`.
        output: Directory to write to.
        processes: Number of processes.
        engine: Rollout engine.
        way: `sharded` or `copied`.
    """
    (output / "work").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_RUN_ID", None)
    group: list[dict[str, str]] = [{}]
    if processes > 1:  # the variables that torchrun sets
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        group = [place | size | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    code, arguments = f"from {script} import main\nmain()", [str(root), str(output), engine, way]
    return [
        Script(code, arguments, environment | told, str(output / f"errors-{rank}.log"))
        for rank, told in enumerate(group)
    ]


def finish(processes: list[Script], output: Path) -> None:
    """Wait for the processes of `start`, each of which must succeed."""
    codes = [process.wait() for process in processes]
    logs = [(output / f"errors-{rank}.log").read_text()[-6000:] for rank in range(len(processes))]
    assert codes == [0] * len(processes), "".join(logs)


def run(observe: Callable[[NGRPOTrainer, NGRPOTrainingConfig, RolloutBatch], None], seen: object) -> None:
    """Train in this process, and write `seen-RANK.json` and `weights-RANK.safetensors`.

    `sys.argv` has the arguments of `start`: inputs, output, engine, and `sharded` or `copied`.

    Args:
        observe: Called after each rollout batch.
        seen: What the observer collects, as JSON.
    """
    root, output, engine, way = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    if way == "sharded":
        shard_on_processors()
    if "LOCAL_RANK" in os.environ:
        join()
    policy_optimization.CorrectnessReward = LengthReward
    trainers: list[NGRPOTrainer] = []
    train, initialize, save = ngrpo_training.train_policy, NGRPOTrainer.__init__, policy_optimization.save_model

    def watched(*, config, observers, **arguments):
        def watch(batch: RolloutBatch) -> dict[str, float]:
            observe(trainers[0], config, batch)
            return {}

        return train(config=config, observers=[*observers, watch], **arguments)

    def remember(self, *arguments, **keywords):
        initialize(self, *arguments, **keywords)
        trainers.append(self)

    def save_both(trainer, directory, dtype):
        save(trainer, directory, dtype)
        parameters = merged_parameters(trainer.accelerator.unwrap_model(trainer.model))
        save_file({name: value.detach().clone() for name, value in parameters}, output / f"weights-{rank}.safetensors")

    ngrpo_training.train_policy, NGRPOTrainer.__init__ = watched, remember
    policy_optimization.save_model = save_both
    rank = PartialState().process_index
    config = NGRPOTrainingConfig.model_validate_json((root / "config.json").read_text())
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"engine": engine})})
    inputs = {name: root / name for name in ("dataset", "neighbor_index", "warm_start")}
    (output / "artifact").mkdir(exist_ok=True)
    ngrpo_training.run(config, inputs, output / "artifact", Context(output / "work"))
    (output / f"seen-{rank}.json").write_text(json.dumps(seen))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def shard_on_processors() -> None:
    """Let accelerate shard on a CPU too: it offers FSDP for accelerators only, although torch's FSDP2 runs on gloo."""
    initialize = AcceleratorState.__init__

    def sharding(self, *arguments, fsdp_plugin=None, **keywords):
        initialize(self, *arguments, fsdp_plugin=fsdp_plugin, **keywords)
        self.fsdp_plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = sharding
