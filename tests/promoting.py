"""Candidates for tests of promotion: artifacts with real manifests, and processes that promote them and may be killed."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

from mlflow import MlflowClient

from forks import fork
from ngrpo.config import ModelPromotionConfig, PromotionConfig, load_config, select
from ngrpo.stages.context import Context
from ngrpo.stages.model_promotion import decide_and_crown, run
from ngrpo.storage.digest import model_digest
from ngrpo.storage.lease import LeaseLostError
from ngrpo.storage.objects import ObjectStore
from ngrpo.tracking.model_registry import ModelRegistry
from ngrpo.tracking.promotions import Promotions

NAME = "test-model"
PROBLEMS, SAMPLES = 60, 8
MIDDLE = [4] * PROBLEMS
TINY = Path(__file__).parents[1] / "pipelines" / "presets" / "tiny.toml"
PROTOCOL = {
    "problems": "q",
    "revision": "r",
    "prompts": "p",
    "sampling": {"samples": SAMPLES, "temperature": 0.6},
    "grader": "g",
}
WRITES = (
    (ObjectStore, "swap"),
    (ObjectStore, "put_bytes"),
    *(
        (MlflowClient, name)
        for name in (
            "set_registered_model_alias",
            "delete_registered_model_alias",
            "set_model_version_tag",
            "set_registered_model_tag",
        )
    ),
)
"""Every call by which a promotion changes anything."""


def settings(**gate) -> ModelPromotionConfig:
    config = select(load_config(TINY), ModelPromotionConfig)
    promotion = PromotionConfig(**{"model_name": NAME, "benchmark": "arithmetic"} | gate)
    return config.model_copy(update={"promotion": promotion})


def write_manifest(directory: Path, key: str, inputs: dict[str, str]) -> dict:
    files = {
        str(path.relative_to(directory)): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    manifest = {"stage": "…", "key": key, "config_digest": "c", "code_version": "v", "inputs": inputs, "files": files}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def result(counts: list[int], samples: int = SAMPLES, prefix: str = "p") -> dict:
    """The result of a model that solved `counts[i]` samples of problem i."""
    names = [f"{prefix}{number}" for number in range(len(counts))]
    mean = sum(counts) / len(counts) / samples
    return {
        "mean": mean,
        "mean_ci": [mean, mean],
        "pass_at_k": {"1": mean},
        "n_problems": len(counts),
        "n_samples": samples,
        "per_problem": dict(zip(names, counts, strict=True)),
        "per_problem_maj": {name: float(count > samples / 2) for name, count in zip(names, counts, strict=True)},
    }


def evaluation_of(counts, *, start=None, samples=SAMPLES, prefix="p", weights="", others=None, **protocol) -> dict:
    """An `evaluation.json`; `start` are the counts of the warm start, `others` those of both models on other benchmarks."""
    start = [1] * len(counts) if start is None else start
    models = {
        name: {"arithmetic": result(of, samples, prefix)} for name, of in (("warm_start", start), ("trained", counts))
    }
    protocols = {name: {"arithmetic": PROTOCOL | protocol} for name in models}
    for other, more in (others or {}).items():
        for name in models:
            models[name][other] = result(more, samples, prefix)
            protocols[name][other] = PROTOCOL
    return {"models": models, "protocols": protocols, "weights": {"trained": weights}}


def candidate(directory: Path, name: str, counts: list[int], *, weights=None, of=None, **options) -> dict[str, Path]:
    """Write the artifacts of a candidate; return the stage's inputs."""
    directory.mkdir(exist_ok=True)
    place = directory / f"{name}-{len(list(directory.glob('*')))}"
    trained, evaluation = place / "trained", place / "evaluation"
    (trained / "model" / "more").mkdir(parents=True)
    (trained / "model" / "model.safetensors").write_text(weights or name)
    (trained / "model" / "more" / "config.json").write_text("{}")
    (trained / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    write_manifest(trained, f"key-{name}", {"dataset": "key-data", "warm_start": "key-warm"})
    evaluation.mkdir()
    measured = evaluation_of(counts, weights=model_digest(trained / "model"), **options)
    (evaluation / "evaluation.json").write_text(json.dumps(measured))
    write_manifest(evaluation, f"evaluation-of-{place.name}", {"trained": of or f"key-{name}"})
    return {"trained": trained, "evaluation": evaluation}


def decide(inputs, output: Path, **gate) -> dict:
    """Run the stage."""
    output.mkdir(exist_ok=True)
    run(settings(**gate), inputs, output, Context(output, store=os.environ.get("NGRPO_STORE")))
    return json.loads((output / "promotion.json").read_text())


def state(registry: ModelRegistry) -> dict[str, str]:
    """The aliases that are set."""
    return {alias: number for alias, number in registry.aliases().items() if number is not None}


def in_process(function, *arguments) -> int:
    """Run a function in a process of its own and return its exit code, -9 where it was killed."""
    process = fork(function, *arguments)
    process.join(120)
    return process.exitcode


TOO_SLOW = 75  # exit code of a promotion that held the lock for too long


def put_to_the_gate(number: str, counts: list[int], lease_seconds: float, killed_before: int | None) -> None:
    """Decide on a version; kill this process before one of its writes."""
    if killed_before is not None:
        kill_before(killed_before)
    store = ObjectStore(f"{os.environ['NGRPO_STORE']}/promotions")
    promotions = Promotions(ModelRegistry(NAME), store, lease_seconds=lease_seconds)
    version = promotions.registry.version(number)
    try:
        decide_and_crown(settings().promotion, promotions, version, evaluation_of(counts), 0)
    except LeaseLostError:
        sys.exit(TOO_SLOW)


def kill_before(write: int) -> None:
    """Kill this process before one of its writes."""
    done = 0
    for owner, name in WRITES:
        original = getattr(owner, name)

        def counting(*arguments, original=original, **options):
            nonlocal done
            if done == write:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return original(*arguments, **options)

        setattr(owner, name, counting)
