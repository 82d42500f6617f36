"""Settings for rollouts in separate processes: impossible ones are refused early, and GPUs are divided up."""

import os
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from ngrpo.config import NGRPOTrainingConfig, load_config
from ngrpo.config.stages import select
from ngrpo.errors import ConfigError, DataError
from ngrpo.mixing.records import RolloutRecords
from ngrpo.rollout import separate_engine
from ngrpo.rollout.engine import Rollout
from ngrpo.rollout.separate_engine import devices_of_engines
from ngrpo.rollout.vllm.shared_file import shared_tensors
from ngrpo.sizing.amounts import GIB
from ngrpo.sizing.fit import misfits
from ngrpo.sizing.stages import needs_of
from ngrpo.training.rollouts_ahead import Request, RolloutsAhead

ROOT = Path(__file__).parents[2]
TINY, LARGE = (ROOT / "pipelines" / "presets" / f"{name}.toml" for name in ("tiny", "paper-7b"))
APART = ("rollout.placement=separate", "training.mismatch_correction=token_truncate")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["rollout.placement=separate"],
            "training.mismatch_correction='off' with rollout.placement='separate': rollouts are those of the weights one batch ago, which "
            "the loss must correct: set it to 'token_truncate', for example",
        ),
        (
            ["rollout.gpus=2"],
            "rollout.gpus=2 has no effect with placement='colocated', where all GPUs train and generate by turns: leave it out, or set "
            "placement to 'separate'",
        ),
        (
            [*APART, "rollout.gpus=2"],
            "rollout.gpus=2 but resources.ngrpo_training.gpus=0: leave it out, or give the stage GPUs",
        ),
        (
            [*APART, "resources.ngrpo_training.gpus=2"],
            "rollout.gpus=0 with rollout.placement='separate' and resources.ngrpo_training.gpus=2: at least one GPU generates and one "
            "trains; raise one of them",
        ),
        (
            [*APART, "resources.ngrpo_training.gpus=8", "rollout.gpus=8"],
            "rollout.gpus=8 with rollout.placement='separate' and resources.ngrpo_training.gpus=8: at least one GPU generates and one "
            "trains; raise one of them",
        ),
        (
            [*APART, "resources.ngrpo_training.gpus=8", "rollout.gpus=3"],
            "rollout.gpus=3 cannot be shared by 5 GPUs that train, each with engines of its own: set it to a multiple of 5",
        ),
        (
            [
                *APART,
                "resources.ngrpo_training.gpus=8",
                "rollout.gpus=6",
                "rollout.engine=vllm",
                "rollout.vllm.tensor_parallel_size=2",
            ],
            "rollout.gpus=6 cannot be shared by 2 GPUs that train, each with engines of its own: set it to a multiple of 4",
        ),
        (["rollout.placement=beside"], "rollout.placement"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides, said):
    with pytest.raises(ConfigError) as refused:
        load_config(TINY, overrides)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_keys_of_other_runs_do_not_move():
    settings = select(load_config(TINY, []), NGRPOTrainingConfig).model_dump_json()
    assert "placement" not in settings
    assert '"gpus"' not in settings
    assert '"placement":"separate"' in select(load_config(TINY, list(APART)), NGRPOTrainingConfig).model_dump_json()


def test_gpus_that_only_generate_do_not_train():
    config = load_config(LARGE, [*APART, "rollout.gpus=4"])
    assert config.needs("ngrpo_training").gpus == 8
    assert (config.processes("ngrpo_training"), config.processes("benchmark_evaluation")) == (4, 8)
    apart, together = (needs_of(each, "ngrpo_training") for each in (config, load_config(LARGE, [])))
    names = {term.name for term in apart.gpu.terms}
    assert "vLLM asleep" not in names
    assert apart.gpu.bytes > 0
    # Half as many processes share the weights, and the engines load theirs too.
    assert apart.memory.bytes == pytest.approx(together.memory.bytes, rel=0.2)


def test_weights_need_room_on_their_way():
    said = [
        misfit
        for misfit in misfits(load_config(LARGE, [*APART, "rollout.gpus=4"]), ["ngrpo_training"])
        if "shared_memory" in misfit.setting
    ]
    assert not said, "bfloat16 has room"
    config = load_config(LARGE, [*APART, "rollout.gpus=4", "cluster.gpu.shared_memory_gib=8"])
    (misfit,) = [one for one in misfits(config, ["ngrpo_training"]) if "shared_memory" in one.setting]
    assert misfit.line.startswith("cluster.gpu.shared_memory_gib=8: up to 15 GiB of shared memory are needed")
    assert "set it to 15 or more" in misfit.line


@pytest.mark.parametrize(
    ("count", "visible", "process", "processes", "gpus", "each", "expected"),
    [
        (0, None, 1, 2, 0, 1, [None]),
        (2, None, 0, 1, 1, 1, ["1"]),
        (8, None, 0, 4, 4, 1, ["4"]),
        (8, None, 3, 4, 4, 1, ["7"]),
        (8, None, 1, 2, 6, 1, ["5", "6", "7"]),
        (8, None, 1, 2, 4, 2, ["4,5"]),
        (4, "GPU-a,GPU-b,GPU-c,GPU-d", 0, 2, 2, 1, ["GPU-c"]),
    ],
)
def test_gpus_are_shared_out(monkeypatch, count, visible, process, processes, gpus, each, expected):
    tell(monkeypatch, count, process, processes)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices_of_engines(gpus, each) == expected


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (4, 4), (3, 2)])
def test_gpus_that_are_not_there_are_refused(monkeypatch, gpus, processes):
    tell(monkeypatch, 6, 0, processes)
    with pytest.raises(
        ConfigError, match=rf"^rollout.gpus={gpus} with .*: 6 GPUs are visible here, and {processes} train: set it to a"
    ):
        devices_of_engines(gpus, 1)


def tell(monkeypatch, count: int, process: int, processes: int) -> None:
    class State:
        local_process_index = process

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(separate_engine, "PartialState", State)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))


# --- the batch in flight ------------------------------------------------------------------------------------------------


class Engine:
    """Stands for a separate engine that has made some rollouts."""

    def __init__(self, rollouts):
        self.rollouts = rollouts

    def begin(self, *arguments):
        self.asked = arguments

    def finish(self):
        return self.rollouts


def rollout(row: int, *, candidates: bool = True, mixed: int = 2) -> Rollout:
    torch.manual_seed(row)
    return Rollout(
        [5, 6, 7 + row],
        torch.randn(3).tolist(),
        "stop" if row % 2 else "length",
        RolloutRecords(
            torch.arange(mixed),
            torch.rand(mixed, 3),
            2**62 + row,
            4,
            torch.randint(0, 9, (mixed, 3), dtype=torch.int32) if candidates else None,
        ),
    )


def saved(directory: Path, rows: range, step: int = 6, **of_rollouts) -> list[Rollout]:
    rollouts = [rollout(row, **of_rollouts) for row in rows]
    ahead, engine = RolloutsAhead(), Engine(rollouts)
    prompts = [[1, row] for row in rows]
    ahead.ask(engine, Request(step, 4, rows[0], prompts, [9 for _ in rows], None), None)
    assert engine.asked == (prompts, [9 for _ in rows], None, None)
    assert ahead.take(step, rows[0], prompts) is None, "it has not arrived"
    ahead.settle(engine)
    ahead.save(directory)
    return rollouts


@pytest.mark.parametrize("candidates", [True, False])
@pytest.mark.parametrize("mixed", [2, 0])
def test_what_was_in_flight_comes_back_to_the_last_bit(tmp_path, candidates, mixed):
    parts = range(4), range(4, 8)
    rollouts = [each for part in parts for each in saved(tmp_path, part, candidates=candidates, mixed=mixed)]
    ahead = RolloutsAhead()
    ahead.resume(tmp_path, None)
    # Four processes go on where two were.
    arrived = ahead.take(6, 2, [[1, 2], [1, 3]])
    assert arrived.made_at == 4
    for ours, theirs in zip(arrived.rollouts, rollouts[2:4], strict=True):
        assert (ours.token_ids, ours.logprobs, ours.finish_reason) == (
            theirs.token_ids,
            theirs.logprobs,
            theirs.finish_reason,
        )
        assert (ours.records.seed, ours.records.index_version) == (theirs.records.seed, 4)
        assert torch.equal(ours.records.positions, theirs.records.positions)
        assert torch.equal(ours.records.weights, theirs.records.weights)
        assert (ours.records.candidates is None) == (not candidates)
        if candidates:
            assert torch.equal(ours.records.candidates, theirs.records.candidates)
    assert ahead.take(6, 2, [[1, 2], [1, 3]]) is None, "it is taken once"


def test_no_part_of_a_rollout_is_left_behind():
    """A field that is added must go into checkpoints too."""
    parts = {"positions", "weights", "seed", "index_version", "candidates"}
    assert {each.name for each in fields(RolloutRecords)} == parts
    assert {each.name for each in fields(Rollout)} == {"token_ids", "logprobs", "finish_reason", "records"}


@pytest.mark.parametrize(
    ("step", "prompts"), [(8, [[1, 0], [1, 1]]), (6, [[1, 0], [2, 1]]), (6, [[1, 0], [1, 1], [1, 2]])]
)
def test_rollouts_of_another_batch_are_never_trained_on(tmp_path, step, prompts):
    saved(tmp_path, range(2))
    ahead = RolloutsAhead()
    ahead.resume(tmp_path, None)
    with pytest.raises(RuntimeError, match=rf"were made for step 6 are not those of step {step}"):
        ahead.take(step, 0, prompts)


def test_parts_of_several_batches_are_refused(tmp_path):
    saved(tmp_path, range(2))
    saved(tmp_path, range(2, 4), step=8)
    with pytest.raises(DataError, match=r"rollouts_ahead: parts of several batches; remove the checkpoint"):
        RolloutsAhead().resume(tmp_path, None)


def test_a_checkpoint_without_a_batch_gives_none(tmp_path):
    ahead = RolloutsAhead()
    ahead.save(tmp_path)
    assert not list(tmp_path.iterdir())
    ahead.resume(tmp_path, None)
    assert ahead.take(0, 0, []) is None


# --- weights on their way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "in_memory"), [(GIB, True), (100, False)])
def test_weights_go_through_memory_where_there_is_room(monkeypatch, free, in_memory):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=free))
    monkeypatch.setattr(os.path, "isdir", lambda place: True if place == "/dev/shm" else Path(place).is_dir())
    with shared_tensors({"weight": torch.zeros(100)}) as path:
        assert path.startswith("/dev/shm/") == in_memory
        assert Path(path).is_file()
    assert not Path(path).exists()
