"""The weights of a policy, whole or with adapters: for an engine, for the neighbor index, and as files.

A policy with adapters is, to all others, the model that it is after merging (LoRA, arXiv 2106.09685, section 4.1: W + B A alpha / r).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ngrpo.config.lora import LoRAConfig

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

ADAPTER = "adapter"
"""Directory of the adapters by themselves, beside that of the merged model."""
_ADAPTED = ".base_layer"
"""What PEFT puts into the names of the weights that it adapts."""


def adapters(settings: LoRAConfig | None) -> LoraConfig | None:
    """Translate settings into PEFT's; none where all weights are trained."""
    if settings is None:
        return None
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),  # PEFT divides it by the rank; any number will do
        target_modules=settings.targets if isinstance(settings.targets, str) else list(settings.targets),
    )


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the model of transformers that adapters, if any, are built into. Its forward pass uses them."""
    return cast(PreTrainedModel, model.get_base_model() if is_peft_model(model) else model)


def merged_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a policy under the names that they have without adapters.

    Where they are sharded, all processes must go through them together: each is gathered for itself.
    """
    yield from _merged(model, base_of(model).named_parameters())


@dataclass(frozen=True)
class _Embeddings:
    """What stands for a sharded model where its input embeddings are asked for."""

    embedding: nn.Embedding

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding


def with_whole_embeddings(model: PreTrainedModel) -> PreTrainedModel | _Embeddings:
    """Return a model whose input embeddings can be read and looked up outside of its forward pass."""
    weight = model.get_input_embeddings().weight
    if not isinstance(weight, DTensor):
        return model
    return _Embeddings(nn.Embedding.from_pretrained(weight.full_tensor().detach()))


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what the files of a policy hold: parameters and buffers, adapters merged; see `merged_parameters`."""
    return dict(_merged(model, base_of(model).state_dict().items()))


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what the file of the adapters by themselves holds, as PEFT names it; see `merged_parameters`."""
    from peft import get_peft_model_state_dict

    return {name: _whole(value).contiguous() for name, value in get_peft_model_state_dict(model).items()}


def _merged(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    adapted = _adapted_layers(model)
    for name, weight in weights:
        layer, _, rest = name.rpartition(f"{_ADAPTED}.")
        if layer in adapted:
            value = _whole(weight)
            yield f"{layer}.{rest}", value + _update(adapted[layer]).to(value.dtype) if rest == "weight" else value
        elif not any(name.startswith(f"{each}.") for each in _above(name) if each in adapted):
            yield name, _whole(weight)


def _above(name: str) -> Iterator[str]:
    """Yield the names of the modules that a parameter is below."""
    while name := name.rpartition(".")[0]:
        yield name


def _adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    if not is_peft_model(model):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in base_of(model).named_modules() if isinstance(module, LoraLayer)}


def _update(layer: LoraLayer) -> Tensor:
    """Return what the adapter of a layer adds to its weight."""
    (name,) = layer.active_adapters
    product = _whole(layer.lora_B[name].weight) @ _whole(layer.lora_A[name].weight)
    update = product.T if layer.fan_in_fan_out else product
    return update * layer.scaling[name]


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
