"""The weights of a policy, whole or with adapters: for an engine, for the neighbor index, and as files.

Everything outside training sees a policy with adapters as the merged model (LoRA, arXiv 2106.09685, section 4.1: W + B A alpha / r).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ngrpo.config.lora import LoRAConfig
from ngrpo.data.adapter_targets import linear_layers, require_targets

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import LoraLayer

ADAPTER = "adapter"
"""Directory of the adapters, beside that of the merged model."""
_ADAPTED = ".base_layer"
"""Text that PEFT inserts into the names of adapted weights."""


def adapters(settings: LoRAConfig | None, model: PreTrainedModel, section: str) -> LoraConfig | None:
    """Translate settings into PEFT's; none if all weights are trained.

    Args:
        settings: `lora` of a training.
        model: The model that is to have adapters.
        section: Where the settings stand, for the error.

    Raises:
        ConfigError: The model has no linear layer that is called like a target.
    """
    if settings is None:
        return None
    from peft import LoraConfig, TaskType

    require_targets(settings, linear_layers(model), section)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),  # PEFT divides it by the rank; any number will do
        target_modules=settings.targets if isinstance(settings.targets, str) else list(settings.targets),
    )


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a policy. Its forward pass uses the adapters, if any."""
    if is_peft_model(model):
        model = cast("PeftModel", model).get_base_model()
    return cast(PreTrainedModel, model)


def merged_parameters(model: nn.Module, embedding: Tensor | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a policy under their names without adapters.

    If they are sharded, all processes must iterate together, because each parameter is gathered.

    Args:
        model: The policy.
        embedding: Its input embeddings, if they are gathered already.
    """
    base = base_of(model)
    held = None if embedding is None else base.get_input_embeddings().weight
    named = (
        (name, embedding if value is held and embedding is not None else value)
        for name, value in base.named_parameters()
    )
    yield from merged(model, named)


@dataclass(frozen=True)
class WholeEmbeddings:
    """Stand-in for a sharded model that provides its input embeddings."""

    embedding: nn.Embedding

    def get_input_embeddings(self) -> nn.Embedding:
        """Return them, as a model does."""
        return self.embedding


def with_whole_embeddings(model: PreTrainedModel) -> PreTrainedModel | WholeEmbeddings:
    """Return a model whose input embeddings can be read and looked up outside of its forward pass."""
    weight = model.get_input_embeddings().weight
    if not isinstance(weight, DTensor):
        return model
    return WholeEmbeddings(nn.Embedding.from_pretrained(weight.full_tensor().detach()))


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the contents of the adapters' file, under PEFT's names; see `merged_parameters`."""
    from peft import get_peft_model_state_dict

    return {name: _whole(value).contiguous() for name, value in get_peft_model_state_dict(model).items()}


def merged(
    model: nn.Module,
    weights: Iterable[tuple[str, Tensor]],
    rounded: Callable[[str, Tensor], Tensor] = lambda _name, weight: weight,
) -> Iterator[tuple[str, Tensor]]:
    """Yield weights of a policy's base model under their names without adapters, with the adapters merged in.

    Args:
        model: The policy.
        weights: Weights by their names in memory.
        rounded: Converts a weight, given its name; called before the weight is gathered, unless it is merged.
    """
    adapted = _adapted_layers(model)
    for name, weight in weights:
        layer, _, rest = name.rpartition(f"{_ADAPTED}.")
        if layer in adapted and rest == "weight":
            yield f"{layer}.{rest}", rounded(name, _whole(weight) + _update(adapted[layer]).to(weight.dtype))
        elif layer in adapted:
            yield f"{layer}.{rest}", _whole(rounded(name, weight))
        elif not any(above in adapted for above in _above(name)):
            yield name, _whole(rounded(name, weight))


def _above(name: str) -> Iterator[str]:
    """Yield the names of the modules that contain a parameter."""
    while name := name.rpartition(".")[0]:
        yield name


def _adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    if not is_peft_model(model):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in base_of(model).named_modules() if isinstance(module, LoraLayer)}


def _update(layer: LoraLayer) -> Tensor:
    """Return the difference that a layer's adapter adds to its weight."""
    (name,) = layer.active_adapters
    down, up = (cast(nn.Linear, matrices[name]).weight for matrices in (layer.lora_A, layer.lora_B))
    update = _whole(up) @ _whole(down) * cast(float, layer.scaling[name])
    # Classes with `Conv1D` in place of a linear layer, such as GPT-2, store the weight transposed.
    return update.T if getattr(layer, "fan_in_fan_out", False) else update


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
