"""A training that is killed after its last checkpoint is finished by the next try; `make test-faults` kills at every write."""

import pytest
from forked_stages import SELECTION, Stages, content, keys

pytestmark = pytest.mark.pipeline


def test_a_training_killed_after_its_last_checkpoint_ends_with_the_same_bytes(objects, store, tmp_path):
    with Stages(tmp_path, objects.uri) as stages:

        def run(stage: str, key: str, settings: tuple[str, ...], kill_at: str | None = None) -> int:
            return stages.run(stage, key, keys(stage, "whole"), settings=settings, kill_at=kill_at)

        for stage in ("prepare_data", "neighbor_index"):
            assert run(stage, "whole", ()) == 0, stages.log(stage, "whole")
        for stage, key, settings in (
            ("sft_warm_start", "whole", ()),
            ("ngrpo_training", "whole", ()),
            ("ngrpo_training", "best", SELECTION),
        ):
            assert run(stage, key, settings) == 0, stages.log(stage, key)
            assert run(stage, f"{key}-killed", settings, kill_at="put_file") == -9
            assert run(stage, f"{key}-killed", settings) == 0, stages.log(stage, f"{key}-killed")
            expected, found = (content(store.fetch(store.find(stage, of))) for of in (key, f"{key}-killed"))
            assert found == expected
            assert "resuming from checkpoint-" in stages.log(stage, f"{key}-killed")
        assert found["metrics.json"]["selected_step"] == 2
