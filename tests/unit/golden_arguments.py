"""The arguments of TRL, vLLM and generation that result from each preset; run as a script, writes them again (`make golden`).

Of TRL's arguments only those are stored that differ from TRL's own defaults. A preset is translated as for the processes that it
trains with: one a GPU. vLLM is replaced where it is called, so that neither it nor a GPU is needed.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, training_args
from trl import GRPOConfig, SFTConfig

from ngrpo.config import (
    BenchmarkEvaluationConfig,
    InitializedModel,
    NGRPOTrainingConfig,
    SFTWarmStartConfig,
    load_config,
    select,
)
from ngrpo.config.grading import BY_LETTER
from ngrpo.data.models import materialize, usable_tokens
from ngrpo.evaluation.benchmark import Benchmark
from ngrpo.evaluation.configured_sampler import start_sampler
from ngrpo.grading.grader import Grader
from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.strategy import Strategy, StrategySource
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout import configured_engine
from ngrpo.rollout.configured_engine import start_engine
from ngrpo.rollout.configured_mixer import build_mixer, configured_end_marker
from ngrpo.rollout.configured_strategy import load_strategy, source_of
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.loading import load_model, load_tokenizer
from ngrpo.training import policy_optimization
from ngrpo.training.policy_optimization import grpo_arguments
from ngrpo.training.warm_start import sft_arguments

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))
GOLDEN = Path(__file__).parents[1] / "data" / "arguments"

CHAT = [{"role": "user", "content": "1 + 1"}]
_MODEL = {"kind": "initialized", "hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate_size": 16}


def golden_path(preset: str) -> Path:
    """Return where the arguments of a preset are stored."""
    return GOLDEN / f"{preset}.json"


def golden_text(preset: str) -> str:
    """Return what is stored of a preset."""
    return json.dumps(arguments(preset), indent=2, ensure_ascii=False) + "\n"


def arguments(preset: str) -> dict[str, Any]:
    """Return the arguments that a preset leads to, of every trainer and of either engine."""
    path = PRESETS / f"{preset}.toml"
    config = load_config(path)
    gpus = {stage: config.needs(stage).gpus for stage in ("ngrpo_training", "benchmark_evaluation")}
    processes = max(gpus["ngrpo_training"], 1)
    result: dict[str, Any] = {
        "sft": _own(sft(select(config, SFTWarmStartConfig))) if config.warm_start.steps else "no warm start",
        "training processes": processes,
        "grpo": _own(grpo(select(config, NGRPOTrainingConfig), processes), processes),
        "engines": {"rollouts": config.rollout.engine, "evaluation": config.evaluation.engine},
        "rollouts": {},
        "validation": {},
        "evaluation": {},
    }
    for engine in ("transformers", "vllm"):
        chosen = load_config(path, [f"rollout.engine={engine}", f"evaluation.engine={engine}"])
        training = rollouts(select(chosen, NGRPOTrainingConfig), gpus["ngrpo_training"])
        result["rollouts"][engine], result["validation"][engine] = training
        result["evaluation"][engine] = evaluation(
            select(chosen, BenchmarkEvaluationConfig), gpus["benchmark_evaluation"]
        )
    return result


@contextmanager
def machine(processes: int = 1) -> Iterator[None]:
    """Let TRL's arguments be made as on a machine that has what they ask for, by one of so many processes."""
    number = property(lambda _: processes, lambda state, value: state.__dict__.update(num_processes=value))
    with (
        patch.object(PartialState, "num_processes", number, create=True),
        patch.object(training_args, "is_torch_bf16_gpu_available", lambda: True),
        patch.dict(os.environ),
    ):
        os.environ.pop("MLFLOW_RUN_ID", None)
        yield


def sft(config: SFTWarmStartConfig) -> SFTConfig:
    """Return TRL's arguments of a warm start."""
    with machine():
        return sft_arguments(config, Path("work"))


def grpo(config: NGRPOTrainingConfig, processes: int = 1) -> GRPOConfig:
    """Return TRL's arguments of training."""
    with machine(processes):
        return grpo_arguments(config, Path("checkpoints"))


def _own(arguments: TrainingArguments, processes: int = 1) -> dict[str, Any]:
    """Return the arguments that are not TRL's defaults."""
    with machine(processes):
        default = type(arguments)(output_dir=arguments.output_dir).to_dict()
    default["use_cpu"] = arguments.use_cpu  # says where the test runs
    return {name: value for name, value in sorted(arguments.to_dict().items()) if value != default[name]}


class _Engine:
    """Stands for the transformers engine and for `vllm.LLM`, and keeps what it is made with and asked for."""

    def __init__(self, **made_with: Any):
        self.made_with = made_with
        self.asked_for: dict[str, Any] = {}


class _Transformers(_Engine):
    def __init__(self, model: Any, ends: Any, padding: int, batch_size: int, *, dtype: str):
        super().__init__(batch_size=batch_size, dtype=dtype)

    def sleep(self) -> None:
        pass

    def generate(self, prompts: Any, seeds: Any, sampling: Sampling, mixer: Mixer | None = None) -> list[Any]:
        mixing = None
        if mixer is not None:
            mixing = {"strategy": described(mixer.strategy), "rate": mixer.rate}
            mixing["end marker"] = _ends_mixing(mixer.end_marker)
        self.asked_for = dataclasses.asdict(sampling) | {"mixing": mixing}
        return [SimpleNamespace(token_ids=[0], finish_reason="stop") for _ in prompts]


class _LLM(_Engine):
    def __init__(self, model: str, **made_with: Any):
        super().__init__(**made_with)
        self.strategies: dict[int, Strategy] = {}
        vocabulary = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        core = SimpleNamespace(
            resources=SimpleNamespace(engine_dead=True), outputs_queue=SimpleNamespace(put=lambda _: None)
        )
        self.llm_engine = SimpleNamespace(
            engine_core=core,
            has_unfinished_requests=lambda: False,
            model_config=SimpleNamespace(get_vocab_size=lambda: vocabulary),
        )

    def collective_rpc(self, method: str, args: Any = ()) -> list[Any]:
        if method in ("mixing_set_index", "mixing_load_index"):
            transitions = args[-1] if method == "mixing_set_index" else load_file(args[0]).get("transitions")
            self.made_with["end marker"] = _ends_mixing(None if transitions is None else EndMarker(transitions))
            return [None]
        if method in ("mixing_add_strategy", "mixing_load_strategy"):
            number, made_from = args
            self.strategies[number] = (
                made_from if method == "mixing_add_strategy" else load_strategy(StrategySource(**made_from))
            )
            return [None]
        assert method == "mixing_take"
        number = self.asked_for["extra_args"]["ngrpo"]["strategy"]
        k = 1 if number is None else self.strategies[number].k
        weights, logprobs = (np.zeros(size, dtype=np.float32).tobytes() for size in (k, 1))
        return [[(b"\0", weights, logprobs, b"") for _ in args[0]]]

    def generate(self, prompts: Any, parameters: list[dict[str, Any]], use_tqdm: bool) -> list[Any]:
        self.asked_for = parameters[0]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0], finish_reason="stop")]) for _ in prompts]

    def sleep(self, level: int) -> None:
        self.made_with["sleeps at level"] = level


@contextmanager
def engines(gpu: bool, processes: int = 1) -> Iterator[None]:
    """Put stand-ins where engines are made, on a machine with or without a GPU, in one of so many processes."""
    own = {"LlamaForCausalLM": SimpleNamespace(module_name="vllm.model_executor.models.llama")}
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": _LLM, "SamplingParams": dict, "ModelRegistry": SimpleNamespace(models=own)},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: not gpu, is_cuda=lambda: gpu)},
        "vllm.v1.engine.exceptions": {"EngineDeadError": RuntimeError},
    }
    modules = {name: ModuleType(name) for name in parts}
    for name, attributes in parts.items():
        vars(modules[name]).update(attributes)
    with (
        patch.dict(sys.modules, modules),
        patch.dict(os.environ),
        patch.object(configured_engine, "TransformersEngine", _Transformers),
        patch.object(torch.distributed, "is_initialized", lambda: processes > 1),
    ):
        for name in ("request", "options"):  # they hold the class of parameters, and the platform
            sys.modules.pop(f"ngrpo.rollout.vllm.{name}", None)
        yield


def rollouts(config: NGRPOTrainingConfig, gpus: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what an engine is made with in training and what it is asked for, and what it is asked for by validation."""
    directory, model = tiny_model()
    tokenizer = load_tokenizer(directory, model.config.vocab_size)
    index = index_of(model, tokenizer)
    trl = grpo(config)
    with engines(gpus > 0, max(gpus, 1)), Grader() as grader:
        engine = start_engine(
            config.rollout,
            model=model,
            directory=directory,
            tokenizer=tokenizer,
            chats=[CHAT],
            dtype=config.model.dtype,
        )
        # As `NGRPOTrainer` asks for a rollout batch.
        sampling = Sampling(trl.max_completion_length, trl.temperature, trl.top_p)
        marker = configured_end_marker(config.mixing, tokenizer, len(index.eligible))
        engine.generate([[0]], [1], sampling, build_mixer(config.mixing, index, marker))
        asked = _seen(engine)
        benchmark = Benchmark("b", ["p"], [CHAT], ["A"], BY_LETTER)
        validation = policy_optimization._validation(config, benchmark, tokenizer, grader)
        answers = None if validation is None else validation.verdicts(engine, process=0, processes=1)
        engine.sleep()
        if answers is None:
            return asked, {}
    return asked, {"samples": len(answers)} | _seen(engine)["asked for"]


def evaluation(config: BenchmarkEvaluationConfig, gpus: int = 0) -> dict[str, Any]:
    """Return what an engine is made with in evaluation, and what it is asked for."""
    directory, model = tiny_model()
    dtypes = []

    def load(_: Path, dtype: str) -> PreTrainedModel:
        dtypes.append(dtype)
        return model

    with engines(gpus > 0), patch.object(configured_engine, "load_model", load):
        sampler = start_sampler(config, directory, [CHAT])
        sampler.generate(Benchmark("b", ["p"], [CHAT], ["A"]), [(0, 0)])
    return {"samples": config.evaluation.samples, "weights": dtypes[0] if dtypes else None} | _seen(sampler.engine)


def index_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> NeighborIndex:
    """Return the neighbor index of a model."""
    embedding = model.get_input_embeddings().weight
    return NeighborIndex.build(embedding, usable_tokens(tokenizer, len(embedding)), candidates=4, block_rows=64)


@cache
def tiny_model() -> tuple[Path, PreTrainedModel]:
    """Return a tiny model and its directory: what it is does not matter here."""
    root = Path(tempfile.mkdtemp(prefix="golden-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    directory = materialize(InitializedModel.model_validate(_MODEL), root / "model")
    return directory, load_model(directory, "float32")


def _seen(engine: Any) -> dict[str, Any]:
    """Return what a stand-in has seen."""
    stand_in = getattr(engine, "_llm", engine)
    asked_for = {name: value for name, value in stand_in.asked_for.items() if name != "stop_token_ids"}
    if "extra_args" in asked_for:
        # The name and the seed are the request's own, and the ids of the end are the tokenizer's.
        settings = asked_for["extra_args"]["ngrpo"] | {"name": "(name)", "seed": "(seed)"}
        strategy = None if settings["strategy"] is None else described(stand_in.strategies[settings["strategy"]])
        asked_for["extra_args"] = {"ngrpo": settings | {"strategy": strategy}}
    return {"made with": stand_in.made_with, "asked for": asked_for}


def described(strategy: Strategy) -> dict[str, Any]:
    """Return the name and the settings of a strategy."""
    return {"name": type(strategy).__name__.lower()} | source_of(strategy).options


def _ends_mixing(marker: EndMarker | None) -> list[int]:
    """Return the tokens that are an end marker by themselves."""
    if marker is None:
        return []
    after = marker.transitions[0].long()
    return marker.passed(after).nonzero()[:, 0].tolist()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for preset in NAMES:
        golden_path(preset).write_text(golden_text(preset), encoding="utf-8")
