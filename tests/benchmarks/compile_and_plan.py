"""What `ngrpo submit` does before it submits: plan against a store that has every result, and compile; against kfp compiling one task."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.measure import alternate, report

from ngrpo.config import load_config
from ngrpo.environment import environment
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.seaweed import serve
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.planning.nodes import History
from ngrpo_kfp.pipelines.planning.plan import make_plan

ROUNDS = 5
PRESET = PRESETS / "paper-7b.toml"
CLUSTER = PRESETS.parent / "cluster.example.toml"
IMAGES = Path(__file__).parents[1] / "pipeline" / "golden" / "images.lock"
OURS = """
import sys
from pathlib import Path
from ngrpo.config import load_config
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.pipelines.planning.plan import History, make_plan
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_pipeline
from ngrpo_kfp.pipelines.kubeflow.images import Images

preset, cluster, images, store, cache = sys.argv[1:]
config = load_config(Path(preset), cluster=Path(cluster))
artifacts = ArtifactStore(ObjectStore(store), Path(cache))
plan = make_plan(config, run="", store=artifacts, rerun_tokens={}, history=History())
assert [stage.name for stage in plan.to_run] == ["model_promotion"], "the store was not asked"
compile_pipeline(config, plan, Images(Path(images)), caching=False)
"""
PEER = """
import sys
from kfp import compiler, dsl

@dsl.container_component
def task():
    return dsl.ContainerSpec(image="python", command=["true"])

@dsl.pipeline
def one_task():
    task()

compiler.Compiler().compile(one_task, sys.argv[1] + "/one_task.yaml")
"""


def run() -> list[dict]:
    """Measure both as new processes, imports included."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        serve(Path(scratch) / "store") as endpoint,
        environment(endpoint.environment()),
    ):
        uri = "s3://ngrpo/artifacts"
        _publish_all(uri, Path(scratch))
        ours = [OURS, str(PRESET), str(CLUSTER), str(IMAGES), uri, f"{scratch}/cache"]
        times = alternate(lambda: _python(ours), lambda: _python([PEER, scratch]), ROUNDS)
    return [
        report(
            "compile_and_plan",
            *times,
            unit="s with imports",
            scale=1.0,
            peer_is="kfp compiling one task",
            preset=PRESET.stem,
        )
    ]


def _publish_all(uri: str, scratch: Path) -> None:
    """Give every stage that can be cached a small result."""
    store = ArtifactStore(ObjectStore(uri), scratch / "cache")
    plan = make_plan(load_config(PRESET, cluster=CLUSTER), run="", store=None, rerun_tokens={}, history=History())
    payload = scratch / "payload"
    payload.mkdir()
    (payload / "metrics.json").write_text("{}")
    for stage in plan:
        store.publish(stage.name, stage.key, payload, config_digest="", code_version="", inputs={})


def _python(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-c", *arguments], check=True, stdout=subprocess.DEVNULL)
