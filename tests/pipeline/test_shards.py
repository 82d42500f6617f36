"""Shards of a model and its optimizer: as many processes go on from them to the same bytes, and any other number goes on too."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from forks import Script
from ngrpo.errors import DataError
from ngrpo.training import shards
from ngrpo.training.sharded_trainer import ShardedTrainer

pytestmark = pytest.mark.pipeline

# Tied weights, an odd number of rows, fewer rows than three processes have, a buffer, a parameter that is never trained.
TRAIN = """
import os, sys
from pathlib import Path
import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from ngrpo.training import shards

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.middle, self.head = nn.Embedding(7, 4), nn.Linear(4, 2), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.arange(4.0))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.unused = nn.Parameter(torch.ones(5))
    def forward(self, ids):
        x = self.embed(ids) + self.offset
        return self.head(x).sum() + self.middle(x).square().sum()

if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
PartialState(cpu=True)
torch.manual_seed(0)
model = Model()
if "RANK" in os.environ:
    fully_shard(model)
groups = [{"params": [p for n, p in model.named_parameters() if "embed" in n], "weight_decay": 0.1},
          {"params": [p for n, p in model.named_parameters() if "embed" not in n], "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9))
start, save_to, result = (Path(value) for value in sys.argv[1:])
begin = 0
if start.name != "none":
    shards.load_weights(model, start)
    shards.load_optimizer(model, optimizer, start)
    begin = 3
def whole(value):
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
def state():
    held = {name: whole(value) for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        held |= {f"{name}/{key}": whole(value) for key, value in optimizer.state.get(parameter, {}).items()}
    return held
loaded = state()
for step in range(begin, 5):
    if step == 3 and save_to.name != "none":
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        with torch.no_grad():
            model.offset.add_(1)
        shards.save(model, optimizer, save_to)
        loaded = state()
    model(torch.tensor([step, 1, 6])).backward()
    optimizer.step()
    optimizer.zero_grad()
torch.save({"loaded": loaded, "ended": state(), "rates": [group["lr"] for group in optimizer.param_groups],
            "betas": optimizer.param_groups[0]["betas"]}, f"{result}-{os.environ.get('RANK', 0)}")
"""


def train(processes: int, result: Path, *, start: str = "none", save_to: str = "none") -> dict:
    """Train with so many processes; return what the first ends with."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    told = [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    started = [
        Script(TRAIN, [start, save_to, str(result)], environment | one, f"{result}-{rank}.log")
        for rank, one in enumerate(told)
    ]
    codes = [process.wait() for process in started]
    logs = [Path(f"{result}-{rank}.log").read_text()[-3000:] for rank in range(processes)]
    assert codes == [0] * processes, "\n".join(logs)
    return torch.load(f"{result}-0")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_shards_are_written_once_and_read_by_as_many_processes_and_by_others(tmp_path):
    saved = tmp_path / "checkpoint-3"
    whole = train(2, tmp_path / "whole", save_to=str(saved))
    files = sorted(path.name for path in saved.iterdir())
    assert files == [f"{kind}-{process}-of-2.pt" for kind in ("optimizer", "weights") for process in (0, 1)]
    weights = [torch.load(saved / f"weights-{process}-of-2.pt", weights_only=True)["values"] for process in (0, 1)]
    assert sorted(weights[0]) == ["embed.weight", "middle.bias", "middle.weight", "offset", "unused"], "tied ones once"
    assert [len(each["embed.weight"]) for each in weights] == [4, 3]
    held = torch.load(saved / "optimizer-0-of-2.pt", weights_only=True)["values"]
    assert {name for name, _ in held} == {"embed.weight", "middle.bias", "middle.weight"}

    again = train(2, tmp_path / "again", start=str(saved))
    assert same(again["loaded"], whole["loaded"])
    assert same(again["ended"], whole["ended"])
    assert (again["rates"], again["betas"]) == ([0.02, 0.02], (0.8, 0.9))
    assert not torch.equal(whole["ended"]["embed.weight"], whole["loaded"]["embed.weight"])
    for processes in (1, 3):
        other = train(processes, tmp_path / f"{processes}", start=str(saved))
        assert same(other["loaded"], whole["loaded"])
        torch.testing.assert_close(other["ended"], whole["ended"])


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(4, 2)


def written(checkpoint: Path, rows: dict[int, torch.Tensor], count: int, name: str = "embed.weight") -> Path:
    checkpoint.mkdir()
    for process, tensor in rows.items():
        content = {"values": {name: tensor}, "sharded": [name]}
        torch.save(content, checkpoint / f"weights-{process}-of-{count}.pt")
    return checkpoint


def test_shards_that_do_not_make_a_model_are_refused_in_one_line(tmp_path):
    model, rows = Tied(), torch.ones(2, 2)
    lacking = written(tmp_path / "lacking", {0: rows}, 2)
    with pytest.raises(DataError, match=r"lacking: weights-1-of-2.pt is missing; remove the checkpoint and run again$"):
        shards.load_weights(model, lacking)
    other = written(tmp_path / "other", {0: rows, 1: rows}, 2, name="wte.weight")
    with pytest.raises(
        DataError, match=r"other: of another model: only one of both has weights 'embed.weight'; remove"
    ):
        shards.load_weights(model, other)
    shards.load_weights(model, written(tmp_path / "whole", {0: rows, 1: 2 * rows}, 2))
    assert model.embed.weight[:, 0].tolist() == [1, 1, 2, 2]
    state = {"values": {("embed.weight", "state1"): torch.ones(8)}, "sharded": [], "groups": [{"lr": 0.1}]}
    for process in (0, 1):
        torch.save(state, tmp_path / "whole" / f"optimizer-{process}-of-2.pt")
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(DataError, match=r"this optimizer's 'state1' cannot be divided anew: train with 2 processes"):
        shards.load_optimizer(model, optimizer, tmp_path / "whole")


def test_several_processes_do_not_go_on_from_the_checkpoint_of_one(tmp_path):
    (tmp_path / "model.safetensors").touch()
    several = SimpleNamespace(_shards=lambda: True, args=SimpleNamespace(world_size=4))
    with pytest.raises(
        DataError, match=r"was saved by a process that trained alone, and 4 that shard .*: train with one"
    ):
        ShardedTrainer._load_from_checkpoint(several, str(tmp_path))


def test_nothing_in_a_shard_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("run",))

    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    torch.save({"values": {"embed.weight": Bomb()}, "sharded": []}, checkpoint / "weights-0-of-1.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        shards.load_weights(Tied(), checkpoint)
