"""Stages that are killed, at random moments and at every write: the next try comes to the same bytes, and nothing is lost."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from forked_stages import INPUTS, SELECTION, Stages, content, keys
from mlflow import MlflowClient

from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(7200)]

KILLS = int(os.environ.get("NGRPO_TEST_KILLS", "200"))
MOST_OF_A_STAGE = 4
EVERY = int(os.environ.get("NGRPO_TEST_KILL_EVERY", "1"))
"""Kill at every so many writes."""


def artifacts(uri: str, root: Path) -> dict[str, dict]:
    """The artifact of every stage; each must be sound."""
    store = ArtifactStore(ObjectStore(uri), root / "fetched")
    found = {stage: store.find(stage, "k") for stage in INPUTS}
    assert [stage for stage, reference in found.items() if reference is None or store.verify(reference)] == []
    return {stage: content(store.fetch(reference)) for stage, reference in found.items()}


def test_stages_killed_at_random_come_to_the_same_bytes(s3_environment, objects, prepared_database, tmp_path):
    seconds: dict[str, float] = {}
    kills, rounds, expected = 0, 0, None
    with Stages(tmp_path, "") as stages:
        while kills < KILLS or expected is None:
            stages.root = tmp_path / f"round-{rounds}"
            stages.root.mkdir()
            stages.store = f"{objects.uri}/{rounds}"
            database = f"sqlite:///{shutil.copy(prepared_database, stages.root)}"
            MlflowClient(database).create_experiment("ngrpo", f"{stages.store}/mlflow")
            stages.environment = {"MLFLOW_TRACKING_URI": database, "NGRPO_PIPELINE_RUN": "run"}
            for stage in INPUTS:
                # The first round is left alone. A try is killed at any moment of all that are still to be made.
                for _ in range(min(MOST_OF_A_STAGE, KILLS - kills) if rounds else 0):
                    after = random.uniform(0, seconds[stage])
                    code = stages.run(stage, "k", keys(stage, "k"), kill_after=after)
                    assert code in (0, -9), stages.log(stage, "k")
                    kills += code == -9
                    if code == 0:
                        break
                started = time.monotonic()
                assert stages.run(stage, "k", keys(stage, "k")) == 0, stages.log(stage, "k")
                seconds.setdefault(stage, time.monotonic() - started)
            found = artifacts(stages.store, stages.root)
            expected = expected or found
            for stage in INPUTS:
                assert found[stage] == expected[stage], stage
            assert ObjectStore(stages.store).list("checkpoints/") == []
            assert [path for path in (stages.root / "work").glob("*/*")] == [], "a finished stage leaves no work behind"
            (version,) = MlflowClient(database).search_model_versions()
            assert json.loads(found["model_promotion"]["promotion.json"])["version"] == int(version.version)
            rounds += 1
            print(f"{kills} kills in {rounds - 1} rounds", flush=True)


@pytest.mark.parametrize(
    ("stage", "settings"),
    [("sft_warm_start", ()), ("ngrpo_training", ()), ("ngrpo_training", SELECTION)],
    ids=["warm start", "last", "best"],
)
def test_a_stage_killed_at_every_write_after_its_last_checkpoint(objects, store, tmp_path, stage, settings):
    with Stages(tmp_path, objects.uri, {"NGRPO_STORE_IS_LOCAL": "1"}) as stages:
        for earlier in list(INPUTS)[: list(INPUTS).index(stage)]:
            assert stages.run(earlier, "k", keys(earlier, "k")) == 0, stages.log(earlier, "k")
        assert stages.run(stage, "k", keys(stage, "k"), settings=settings) == 0, stages.log(stage, "k")
        expected = content(store.fetch(store.find(stage, "k")))
        writes = stages.writes(stage, "k")
        assert writes > 50
        for number in range(0, writes, EVERY):
            key = f"killed-{number}"
            assert stages.run(stage, key, keys(stage, "k"), settings=settings, kill_at=number) == -9
            assert stages.run(stage, key, keys(stage, "k"), settings=settings) == 0, stages.log(stage, key)
            assert content(store.fetch(store.find(stage, key))) == expected, number
        print(f"{writes} writes", flush=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("settings", "step", "file", "damage", "resumed"),
    [
        ((), 4, "optimizer.pt", truncate, "resuming from checkpoint-2"),
        ((), 4, "model.safetensors", flip_a_bit, "resuming from checkpoint-2"),
        ((), 4, "complete", Path.unlink, "resuming from checkpoint-2"),
        (SELECTION, 2, "model.safetensors", flip_a_bit, "checkpoint-2, is lost"),
    ],
)
def test_a_training_whose_checkpoint_was_damaged_comes_to_the_same_bytes(
    objects, store, tmp_path, settings, step, file, damage, resumed
):
    stage = "ngrpo_training"
    with Stages(tmp_path, objects.uri, {"NGRPO_STORE_IS_LOCAL": "1"}) as stages:
        for earlier in list(INPUTS)[:3]:
            assert stages.run(earlier, "k", keys(earlier, "k")) == 0, stages.log(earlier, "k")
        assert stages.run(stage, "k", keys(stage, "k"), settings=settings) == 0, stages.log(stage, "k")
        assert stages.run(stage, "damaged", keys(stage, "k"), settings=settings, kill_at="put_file") == -9
        damage(tmp_path / "work" / stage / "damaged" / "work" / "checkpoints" / f"checkpoint-{step}" / file)
        assert stages.run(stage, "damaged", keys(stage, "k"), settings=settings) == 0, stages.log(stage, "damaged")
        assert resumed in stages.log(stage, "damaged")
        expected, found = (content(store.fetch(store.find(stage, key))) for key in ("k", "damaged"))
        assert found == expected
