"""A training that is killed after its last checkpoint is finished by the next try; `make test-faults` kills at every write."""

import re

import pytest
from forked_stages import SELECTION, Stages, content, keys

from ngrpo.environment import SAVE_MINUTES

pytestmark = pytest.mark.pipeline


# `save_steps` saves only at the end of training; earlier checkpoints were saved by time.
ONLY_THE_END = ("training.save_steps=4", "warm_start.save_steps=5")


ADAPTERS = ("training.lora.rank=4", "warm_start.lora.rank=4")


@pytest.mark.parametrize("lora", [(), pytest.param(ADAPTERS, marks=pytest.mark.long)], ids=["whole", "adapters"])
def test_a_training_that_saves_by_time_and_is_killed_ends_with_the_same_bytes(objects, store, tmp_path, lora):
    with Stages(tmp_path, objects.uri) as stages:

        def run(stage: str, key: str, settings: tuple[str, ...], kill_at: str | None = None) -> None:
            ended = stages.run(stage, key, keys(stage, "whole"), settings=(*settings, *lora), kill_at=kill_at)
            assert ended == (0 if kill_at is None else -9), stages.log(stage, key)

        for stage in ("prepare_data", "neighbor_index"):
            run(stage, "whole", ())
        for stage, key, settings in (
            ("sft_warm_start", "whole", ONLY_THE_END),
            ("ngrpo_training", "whole", ONLY_THE_END),
            ("ngrpo_training", "best", SELECTION),
        ):
            stages.environment = {}
            run(stage, key, settings)
            # Killed when it has saved its last checkpoint and uploaded those before; then elsewhere; then where the last one is.
            for pod, kill_at in (("first", "put_file"), ("second", "put_file"), ("first", None)):
                stages.environment = {SAVE_MINUTES: "1e-6", "NGRPO_WORK_DIR": f"{tmp_path}/{pod}"}
                run(stage, f"{key}-killed", settings, kill_at=kill_at)
            log = stages.log(stage, f"{key}-killed")
            steps = 5 if stage == "sft_warm_start" else 4
            elsewhere, here = map(int, re.findall(r"resuming from checkpoint-(\d+)", log))
            assert 0 < elsewhere < steps == here, log
            expected, found = (content(store.fetch(store.find(stage, of))) for of in (key, f"{key}-killed"))
            assert found == expected
            assert objects.list("checkpoints/") == [], "a finished stage leaves no checkpoint behind"
            assert b"\r" not in (tmp_path / f"{stage}-{key}-killed.log").read_bytes(), (
                "a bar, with a line for every refresh"
            )
        assert [entry["step"] for entry in found["log_history.json"] if "eval_mean" in entry] == [2, 4]
        assert found["metrics.json"]["selected_step"] == 2
