"""Detect, from a model's configuration, what vLLM 0.32 would refuse at start-up or compute differently from transformers.

vLLM is not imported: that would take many seconds, and on a cluster the image of the first stage does not contain it. The facts about its
classes come from its source code or from experiments (`docs/models.md`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ngrpo.config.sections import VLLMConfig
from ngrpo.config.serving import Serving
from ngrpo.data.model_class import outline
from ngrpo.data.vllm_classes import IMAGES, TEXT, head_size_problem
from ngrpo.errors import DataError

_ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layer types that vLLM's Transformers backend can serve: those that use the common attention interface of transformers."""
_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Settings that vLLM reads as the context length; it uses the smallest."""
_WITHIN = {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
"""Rope types for which vLLM assumes that the context length already includes the scaling factor."""
_GROUPS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
"""Settings that vLLM reads as the number of key-value heads; it uses the first that exists."""
_TIED = {
    "CohereForCausalLM",
    "Cohere2ForCausalLM",
    "Cohere2MoeForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3nForCausalLM",
    "Lfm2MoeForCausalLM",
}
"""Classes for which vLLM uses the input embedding as output head, regardless of `tie_word_embeddings`."""
_NEEDED: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v3": {"topk_method": "noaux_tc"},
    "lfm2": {"block_dim": None, "conv_dim": None},
}
"""Settings that vLLM's classes require and those of transformers do not, with the required value, or None if any value will do."""
_OTHERWISE = {"bloom": "with another GELU"}
"""What vLLM computes differently from transformers, so that log-probabilities in training would not match those of the rollouts."""
_OTHERWISE_ON_CPU = {"gpt_oss": "experts", "lfm2": "short convolutions", "lfm2_moe": "short convolutions"}
"""What vLLM's CPU build computes differently: log-probabilities were off by 0.4 and more."""
_SCANNING = {"falcon_mamba", "jamba", "mamba"}
"""Model types that need a selective scan, which vLLM's CPU build lacks."""
_IMAGE_CLASSES = {"Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"}
"""Text models whose classes share a module with multimodal ones, and so need its imports."""


class _Engine(Protocol):
    @property
    def engine(self) -> str: ...
    @property
    def vllm(self) -> VLLMConfig: ...


class _Config(Protocol):
    """The settings of a run, or the subset that `prepare_data` receives."""

    @property
    def rollout(self) -> _Engine: ...
    @property
    def evaluation(self) -> _Engine: ...
    @property
    def serving(self) -> Serving: ...


@dataclass(frozen=True)
class Service:
    """How one section of a run uses vLLM to serve the model."""

    section: str
    """`rollout` or `evaluation`."""
    stage: str
    """The stage that starts vLLM."""
    vllm: VLLMConfig
    dtype: str
    on_cpu: bool
    processes: int
    """Number of training processes, each of which starts vLLM."""
    processes_on_cluster: int
    """The same number for a run on a cluster."""
    as_it_is: bool
    """Whether vLLM reads the unmodified files of the base model."""

    @property
    def engine(self) -> str:
        """The setting that selects vLLM, for messages."""
        return f"{self.section}.engine='vllm'"


def services(config: _Config, *, cluster: bool) -> list[Service]:
    """Return the uses of vLLM in a run; empty if no section selects it.

    Args:
        config: Settings of the run.
        cluster: Whether the run is on a cluster, where training has one process per GPU and node. On one machine it has one process.
    """
    serving = config.serving
    several = max(serving.training_gpus, 1) * serving.nodes
    return [
        Service(
            name,
            stage,
            section.vllm,
            serving.dtype,
            not gpus and not torch.cuda.is_available(),
            processes if cluster else 1,
            processes,
            not serving.warm_start,
        )
        for name, stage, section, gpus, processes in (
            ("rollout", "ngrpo_training", config.rollout, serving.training_gpus, several),
            ("evaluation", "benchmark_evaluation", config.evaluation, serving.evaluation_gpus, 1),
        )
        if section.engine == "vllm"
    ]


def require_service(model: PreTrainedModel, service: Service, label: str) -> None:
    """Refuse a model that vLLM cannot serve, or would serve incorrectly.

    Args:
        model: The model, possibly on the meta device, with the unmodified configuration of its files.
        service: How vLLM is to serve it.
        label: Name of the model in errors, for example `model 'org/name'`.

    Raises:
        DataError: The model cannot be served; the message names the first problem and its cure.
    """
    if "hf_overrides" in service.vllm.options or service.vllm.options.get("model_impl", "auto") != "auto":
        return  # the user overrides how vLLM reads the model
    for problem, cure in _problems(model, service):
        raise DataError(f"{service.engine}: {label}: {problem}; {cure}")


def cluster_problem(model: PreTrainedModel, service: Service) -> str | None:
    """Return in one line why a local run could not run on a cluster, or None if it could."""
    if service.processes == service.processes_on_cluster:
        return None
    problem = _of_processes(model, service, service.processes_on_cluster)
    return None if problem is None else f"on a cluster, {service.engine}: {'; '.join(problem)}"


def _of_processes(model: PreTrainedModel, service: Service, processes: int) -> tuple[str, str] | None:
    """Return why several training processes cannot each start vLLM, and the cure; None if they can."""
    why = None
    if service.vllm.tensor_parallel_size > 1:
        why = f"{service.section}.vllm.tensor_parallel_size={service.vllm.tensor_parallel_size} makes vLLM start worker processes"
    elif _by_transformers(model):
        why = f"vLLM serves {type(model).__name__} through the class of transformers, in a separate process"
    if why is None or processes == 1:
        return None
    return (
        f"{why}, which is not possible with {processes} training processes",
        f"set {service.section}.engine='transformers', or train with one process (resources.{service.stage}.gpus=1, cluster.nodes=1)",
    )


def served_positions(config: PretrainedConfig) -> int | None:
    """Return the context length that vLLM derives from a configuration; None if there is no limit."""
    text = config.get_text_config(decoder=True)
    named = [value for name in _POSITIONS if isinstance(value := getattr(text, name, None), int) and value > 0]
    if not named:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    factor = 1.0
    for one in nested or [rope]:
        if one.get("rope_type", "default") not in _WITHIN and "gemma3" not in config.model_type:
            factor = one.get("factor") or factor
    return int(min(named) * factor)


def _problems(model: PreTrainedModel, service: Service) -> Iterator[tuple[str, str]]:
    config, name = model.config, type(model).__name__
    text = config.get_text_config(decoder=True)
    kind, other = config.model_type, f"set {service.section}.engine='transformers'"
    if service.as_it_is and not config.architectures:
        yield (
            "config.json has no architectures, from which vLLM chooses its class",
            f'add "architectures": ["{name}"] in a copy of the model, or {other}',
        )
    if _by_transformers(model):
        yield from ((problem, other) for problem in _not_through_transformers(model))
        yield from _ignored_groups(model)
    for setting, value in _NEEDED.get(kind, {}).items():
        held = getattr(text, setting, None)
        if held is None or value not in (None, held):
            shown = "" if value is None else f"={value!r}"
            yield (
                f"vLLM needs {setting}{shown} in config.json, where it is {held!r}",
                f"correct it in a copy, or {other}",
            )
    if name in _TIED and config.tie_word_embeddings is False:
        yield (
            f"tie_word_embeddings=false: the model has a separate output head, but vLLM's {name} uses the input embedding instead",
            other,
        )
    if kind in _OTHERWISE:
        yield (
            f"vLLM computes a model of type {kind!r} {_OTHERWISE[kind]}, unlike transformers in training",
            other,
        )
    heads, shards = getattr(text, "num_attention_heads", None), service.vllm.tensor_parallel_size
    if isinstance(heads, int) and heads % shards:
        yield (
            f"{service.section}.vllm.tensor_parallel_size={shards} does not divide its {heads} attention heads",
            "choose a divisor",
        )
    if service.on_cpu:
        further = f"{other}, or give {service.stage} a GPU (resources.{service.stage}.gpus=1)"
        yield from ((problem, further) for problem in _on_cpu(model, service.dtype))
    problem = _of_processes(model, service, service.processes)
    if problem is not None:
        yield problem


def _by_transformers(model: PreTrainedModel) -> bool:
    """Whether vLLM serves a model through transformers, for lack of a native class."""
    return type(model).__name__ not in TEXT | IMAGES


def _not_through_transformers(model: PreTrainedModel) -> Iterator[str]:
    """Yield why vLLM's Transformers backend cannot serve a model without a native class."""
    cls = type(model)
    lacks = f"vLLM has no class for {cls.__name__}, and cannot serve it through transformers"
    text = model.config.get_text_config(decoder=True)
    layers: Sequence[str] = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    strange = sorted(set(layers) - _ATTENDING)
    if strange:
        yield f"{lacks}: it has layers of the kind {strange[0]!r}"
    elif not (cls.is_backend_compatible() or cls._can_set_attn_implementation()):
        yield f"{lacks}: the class has a custom attention"
    elif text is not model.config:
        yield f"{lacks}: it is a multimodal model"


def _ignored_groups(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Yield a problem if vLLM would use a number of key-value heads that the class of transformers ignores."""
    config = model.config
    text = config.get_text_config(decoder=True)
    setting = next((name for name in _GROUPS if isinstance(getattr(text, name, None), int)), None)
    heads = getattr(text, "num_attention_heads", None)
    if setting is None or getattr(text, setting) == heads or not isinstance(heads, int):
        return
    held = getattr(text, setting)
    try:
        setattr(text, setting, heads)
        alike = _shapes(outline(config, "")) == _shapes(model)
    finally:
        setattr(text, setting, held)
    if alike:
        yield (
            f"config.json has {setting}={held}, which models of type {config.model_type!r} ignore, but which vLLM would use as "
            f"the number of key-value heads, {heads}",
            f"remove {setting} from config.json in a copy of the model",
        )


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _on_cpu(model: PreTrainedModel, dtype: str) -> Iterator[str]:
    """Yield why the CPU build of vLLM cannot serve a model."""
    config, build = model.config, "the CPU build of vLLM"
    text = config.get_text_config(decoder=True)
    if config.model_type in _OTHERWISE_ON_CPU:
        yield f"{build} computes its {_OTHERWISE_ON_CPU[config.model_type]} differently from transformers in training"
    if config.model_type in _SCANNING:
        yield f"{build} has no selective scan, which a model of type {config.model_type!r} needs"
    linear = isinstance(getattr(text, "linear_num_value_heads", None), int)
    latent = isinstance(getattr(text, "kv_lora_rank", None), int)
    if (linear or latent) and dtype != "bfloat16":
        what = "linear" if linear else "latent"
        yield f"model.dtype={dtype!r}: {build} computes {what} attention in bfloat16 only"
    heads = getattr(text, "num_attention_heads", None)
    if not linear and not latent and isinstance(heads, int) and heads > 0:
        problem = head_size_problem(getattr(text, "head_dim", None) or text.hidden_size // heads)
        if problem is not None:
            yield problem
    name = type(model).__name__
    if name in IMAGES | _IMAGE_CLASSES and find_spec("torchvision") is None:
        yield f"vLLM needs torchvision for {name}, which is not installed"
