"""What an evaluation takes beside generating: loading, digests, keeping samples, grading and statistics, with SmolLM2 on two benchmarks."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from tests.benchmarks.measure import report

from ngrpo.config import load_config, select
from ngrpo.environment import environment
from ngrpo.evaluation.samples import Sampler
from ngrpo.stages.declarations import STAGES

PRESET = Path(__file__).parents[2] / "pipelines" / "presets" / "smollm2.toml"


def run() -> list[dict]:
    """Evaluate the base model twice, under two names, and measure the whole stage against what it spends in the engine."""
    config = load_config(PRESET, ["warm_start.steps=0"])
    with tempfile.TemporaryDirectory() as directory, environment({"NGRPO_STORE": None}):
        root = Path(directory)
        for name, artifact in (("prepare_data", "dataset"), ("sft_warm_start", "warm_start")):
            _stage(name, config, root, artifact)
        shutil.copytree(root / "warm_start", root / "trained")
        (
            root / "trained" / "model" / "README.md"
        ).touch()  # else the two were one model, whose samples are generated once
        generate, seconds = Sampler.generate, []

        def timed(*arguments: object) -> object:
            started = time.perf_counter()
            table = generate(*arguments)
            seconds.append(time.perf_counter() - started)
            return table

        Sampler.generate = timed
        started = time.perf_counter()
        _stage("benchmark_evaluation", config, root, "evaluation")
        whole = time.perf_counter() - started
        Sampler.generate = generate
    return [
        report(
            "evaluation_overhead",
            [whole],
            [sum(seconds)],
            unit="s for one evaluation",
            scale=1.0,
            peer_is="generating the samples",
            problems=sum(source.size for source in config.data.benchmarks.values()),
            samples=config.evaluation.samples,
        )
    ]


def _stage(name: str, config: object, root: Path, artifact: str) -> None:
    inputs = {path.name: path for path in root.iterdir()}
    (root / artifact).mkdir()
    (root / f"{artifact}.work").mkdir()
    STAGES[name].function()(select(config, STAGES[name].config), inputs, root / artifact, root / f"{artifact}.work")
