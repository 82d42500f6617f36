"""`NGRPOTrainer` as TRL's users call a trainer: index, end marker and engine are made from the model and the arguments."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from datasets import IterableDataset
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig

from ngrpo.config import RolloutConfig
from ngrpo.data.models import usable_tokens
from ngrpo.errors import ConfigError
from ngrpo.library.adapters import adapted_embedding, problem_of
from ngrpo.library.arguments import NGRPOConfig
from ngrpo.library.models import model_files
from ngrpo.mixing.mixer import Mixer
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.configured_engine import start_engine
from ngrpo.rollout.configured_mixer import configured_end_marker
from ngrpo.rollout.engine import RolloutEngine
from ngrpo.rollout.loading import end_of_sequence_ids, is_sharded, weights_as_saved
from ngrpo.training import ngrpo_trainer
from ngrpo.training.following_index import FollowingIndex
from ngrpo.training.rollout_batch import RolloutBatch
from ngrpo.training.rollout_trainer import RolloutTrainer
from ngrpo.training.trained_model import save_model

if TYPE_CHECKING:
    from peft import PeftConfig

_REFUSED = {
    "quantization_config": "a quantized model is trained by adapters, which are not supported; leave it out",
    "tools": "a rollout with calls of tools is not one mixed text; leave it out",
    "rollout_func": "rollouts come from ngrpo's engines; leave it out",
    "environment_factory": "a rollout in an environment is not one mixed text; leave it out",
}
"""Arguments of TRL's trainer that cannot be had, each with the reason and the cure."""


class NGRPOTrainer(ngrpo_trainer.NGRPOTrainer):
    """TRL's `GRPOTrainer` with mixed rollouts."""

    section = "NGRPOConfig"
    _tag_names = ["trl", "ngrpo"]  # noqa: RUF012 as TRL declares it
    _name = "N-GRPO"

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        *,
        peft_config: PeftConfig | None = None,
        index: NeighborIndex | str | os.PathLike[str] | None = None,
        **refused: Any,
    ):
        """Build the trainer; every argument but `index` is TRL's.

        Args:
            model: A name on the hub, a directory, or a model.
            reward_funcs: See `GRPOTrainer`.
            args: An `NGRPOConfig`; a `GRPOConfig` gets the defaults of mixing.
            train_dataset: See `GRPOTrainer`; prompts are texts or chats.
            eval_dataset: See `GRPOTrainer`; rollouts of evaluations are not mixed.
            processing_class: See `GRPOTrainer`.
            reward_processing_classes: See `GRPOTrainer`.
            callbacks: See `GRPOTrainer`.
            optimizers: See `GRPOTrainer`.
            peft_config: A `peft.LoraConfig`: adapters are trained in place of all weights, embeddings excepted.
            index: Neighbor index of the model, or the directory that one was saved in; built by default.
            **refused: Arguments of `GRPOTrainer` that cannot be had.

        Raises:
            ConfigError: An argument cannot be had here, or does not fit the model.
            DataError: The index is damaged or of another model.
        """
        if unknown := refused.keys() - _REFUSED.keys():
            raise TypeError(f"NGRPOTrainer got an unexpected keyword argument {min(unknown)!r}")
        problems = [f"NGRPOTrainer.{name}: {_REFUSED[name]}" for name, value in refused.items() if value]
        if peft_config is not None and (problem := problem_of(peft_config)):
            problems.append(f"NGRPOTrainer.peft_config: {problem}")
        if problems:
            raise ConfigError("\n".join(problems))
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        if hasattr(model, "peft_config"):
            raise ConfigError(
                "NGRPOTrainer.model: it has adapters already: merge them, and give new ones as peft_config"
            )
        args = _arguments(model, args)
        super().__init__(
            model,
            reward_funcs,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            reward_processing_classes,
            callbacks,
            optimizers,
            peft_config=peft_config,
            make_engine=self._start_engine,
            current_mixer=self._current,
            mask_mixed_positions=args.mask_mixed_positions,
            mixed_ratio=args.mixed_ratio,
            correct_mismatch=args.correct_mismatch,
            mismatch_bound=args.mismatch_bound,
            observers=[_gate_rate],
        )
        self._require_supported()
        self._following = self._follow(index)

    @property
    def index(self) -> NeighborIndex | None:
        """The neighbor index as of the last rollout batch; none where nothing is mixed with neighbors."""
        return self._following.fingerprinted() if self._following else None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; a checkpoint that is resumed from brings its index along. See `Trainer.train`."""
        checkpoint = resume_from_checkpoint
        if isinstance(checkpoint, bool):
            checkpoint = get_last_checkpoint(self.args.output_dir) if checkpoint else None
        if checkpoint is not None and self._following is not None and (Path(checkpoint) / "neighbor_index").is_dir():
            self._following.resume(Path(checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the rewards of rollouts that are not mixed, on `eval_dataset`; see `Trainer.evaluate`."""
        mixer = self._mixer
        try:
            # TRL's, not `RolloutTrainer`'s, which measures the pipeline's problems for validation.
            metrics: dict[str, float] = super(RolloutTrainer, self).evaluate(*args, **kwargs)
            return metrics
        finally:
            self._mixer = mixer  # the rest of a rollout batch that is still being trained on was mixed with it

    def _require_supported(self) -> None:
        plugin = self.args.deepspeed_plugin
        if plugin is not None and plugin.zero_stage == 3:
            raise ConfigError("deepspeed: stage 3 leaves no whole embedding to mix from: use stage 2 at most, or FSDP2")
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise ConfigError("fsdp: version 1 leaves no whole embedding to mix from: set fsdp_version to 2")
        if is_peft_model(self.model) and (name := adapted_embedding(self.model)):
            raise ConfigError(
                f"NGRPOTrainer.peft_config: {name} would move under the neighbor index: leave it out of target_modules"
            )
        if self._is_vlm:
            raise ConfigError("NGRPOTrainer.processing_class: prompts with images are not supported; pass a tokenizer")

    def _follow(self, given: NeighborIndex | str | os.PathLike[str] | None) -> FollowingIndex | None:
        """Return the index of the model, to be kept up to date; none without mixing."""
        settings = self.args.settings()
        if settings.mixing.strategy == "token":
            return None
        index = NeighborIndex.load(Path(given)) if isinstance(given, str | os.PathLike) else given
        if index is None:
            embedding = self.model.get_input_embeddings().weight.detach().to(self.accelerator.device)
            eligible = usable_tokens(self._tokenizer, len(embedding))
            index = NeighborIndex.build(embedding, eligible, **settings.neighbors.model_dump())
        elif index.metric != settings.neighbors.metric:
            raise ConfigError(
                f"NGRPOTrainer.index: built by metric={index.metric!r} where NGRPOConfig.metric={settings.neighbors.metric!r}: "
                "choose the same"
            )
        following = FollowingIndex(
            index,
            neighbors=settings.neighbors,
            mixing=settings.mixing,
            end_marker=configured_end_marker(settings.mixing, self._tokenizer, len(index.eligible)),
            every_batch=self.args.index_refresh == "every_batch",
        )
        self.add_callback(following)
        return following

    def _current(self, model: PreTrainedModel) -> Mixer | None:
        """Return the mixer of the next rollout batch; none in an evaluation."""
        return self._following.mixer(model) if self._following is not None and self.model.training else None

    def _start_engine(self, model: PreTrainedModel) -> RolloutEngine:
        args = self.args
        dtype = "bfloat16" if args.bf16 else str(model.dtype).removeprefix("torch.")
        if args.engine == "transformers":
            return start_engine(
                RolloutConfig(max_tokens=args.max_completion_length, batch_size=args.rollout_batch_size),
                model=model,
                directory=self._files(model) if is_sharded(model) else Path(),
                tokenizer=self._tokenizer,
                chats=(),
                dtype=dtype,
            )
        from ngrpo.rollout.vllm.engine import VLLMEngine

        with self._on_disk(model) as directory:
            return VLLMEngine(
                directory,
                end_of_sequence_ids(model, self._tokenizer),
                as_saved=partial(weights_as_saved, model),
                max_length=args.vllm_max_model_length or self._longest_prompt() + args.max_completion_length,
                batch_size=args.rollout_batch_size,
                dtype=dtype,
                tensor_parallel_size=args.vllm_tensor_parallel_size,
                gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            )

    def _files(self, model: PreTrainedModel) -> Path:
        """Return the files that the model was loaded from."""
        return model_files(model.name_or_path, (self.args.model_init_kwargs or {}).get("revision"))

    @contextmanager
    def _on_disk(self, model: PreTrainedModel) -> Iterator[Path]:
        """Provide files that vLLM loads the model from; their weights are replaced before it generates."""
        if model.name_or_path:
            yield self._files(model)
            return
        Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.args.output_dir, prefix="engine-") as directory:
            save_model(self, Path(directory))
            yield Path(directory)

    def _longest_prompt(self) -> int:
        """Return the tokens of the longest prompt."""
        longest = 0
        held = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for dataset in [self.train_dataset, *held.values()]:
            if isinstance(dataset, IterableDataset):
                raise ConfigError(
                    "NGRPOConfig.vllm_max_model_length: missing: of a data set that streams the longest prompt is not known; "
                    "set it to that and max_completion_length together"
                )
            for start in range(0, 0 if dataset is None else len(dataset), 1000):
                ids, *_ = self._tokenize_prompts(dataset[start : start + 1000]["prompt"])
                longest = max(longest, *map(len, ids))
        return longest


def _arguments(model: str | PreTrainedModel, args: GRPOConfig | None) -> NGRPOConfig:
    if isinstance(args, NGRPOConfig):
        args.settings()  # what was set after it was made
        return args
    if args is not None:
        return NGRPOConfig.of(args)
    name = model if isinstance(model, str) else model.name_or_path
    return NGRPOConfig(f"{name.rstrip('/').rpartition('/')[2]}-N-GRPO")


def _gate_rate(batch: RolloutBatch) -> dict[str, float]:
    """Log the share of steps that were mixed."""
    if batch.mixture is None:
        return {}
    return {"mixing/gate_rate": int(batch.mixture.mask.sum()) / sum(len(each.token_ids) for each in batch.rollouts)}
