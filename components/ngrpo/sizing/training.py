"""Memory of training: weights, gradients, Adam, reference model, activations, logits, rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ngrpo.config import RunConfig
from ngrpo.config.lora import LoRAConfig
from ngrpo.sizing import figures
from ngrpo.sizing.amounts import Amount, largest
from ngrpo.sizing.generation import Generation
from ngrpo.sizing.model_shape import ModelShape

Arithmetic = Literal["float32", "bfloat16", "autocast"]


@dataclass(frozen=True)
class Training:
    """The properties of a training stage that determine its memory."""

    shape: ModelShape
    trained: int
    """Number of trainable parameters: all, or those of the adapters."""
    arithmetic: Arithmetic
    """Precision of the activations: `bfloat16` if FSDP casts the weights, `autocast` if each operation casts its inputs."""
    shards: int
    """Number of processes that weights, gradients and Adam moments are sharded over."""
    copies: int
    """Number of further processes with a full copy of the model, which all-reduce gradients through a buffer."""
    sequences: int
    """Sequences per forward pass."""
    tokens: int
    """Length of the longest sequence, in tokens."""
    checkpointing: bool
    """Whether gradient checkpointing recomputes activations."""
    reference: bool
    """Whether there is a reference model."""
    adam: int
    """Optimizer state in bytes per trainable parameter."""
    tiles: int
    """Tiles of logits in memory at the same time."""

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are trained instead of all weights."""
        return self.trained < self.shape.parameters

    @property
    def model(self) -> Amount:
        """Memory that is allocated throughout training."""
        share, trained = self.shape.parameters / self.shards, self.trained / self.shards
        return Amount.of(
            weights=figures.FLOAT32 * share,
            adapters=figures.FLOAT32 * trained if self.has_adapters else 0,
            gradients=figures.FLOAT32 * trained * (2 if self.copies else 1),
            optimizer=self.adam * trained,
            reference_model=figures.FLOAT32 * share if self.reference else 0,
        )

    @property
    def pass_(self) -> Amount:
        """Additional memory of a forward and backward pass."""
        number = figures.FLOAT32 if self.arithmetic == "float32" else figures.BFLOAT16
        return Amount.of(
            working_copy=self._working_copy(number),
            activations=self._activations(number),
            LM_head=self._head(number),
        )

    def _working_copy(self, number: int) -> float:
        """Bytes of the weights in the compute dtype: all weights, or with FSDP two layers and the weights outside layers."""
        shape = self.shape
        if self.arithmetic == "float32" and self.shards == 1:
            return 0
        if self.shards == 1:
            return number * shape.parameters
        outside = shape.parameters - shape.layers * shape.layer
        return number * (2 * shape.layer + outside)

    def _activations(self, number: int) -> float:
        shape, kept = self.shape, self.sequences * self.tokens
        of_hidden, of_feed_forward = figures.ACTIVATIONS[self.arithmetic]
        token = (
            of_hidden * shape.hidden_size + of_feed_forward * shape.intermediate_size + figures.FLOAT32 * shape.heads
        )
        mask = number * self.sequences * self.tokens**2
        layer = kept * token + mask
        if self.checkpointing:
            inputs = shape.layers * kept * figures.LAYER_INPUT[self.arithmetic] * shape.hidden_size
            return inputs + 2 * layer
        return (shape.layers + 1) * layer  # plus the gradients of one layer in the backward pass

    def _head(self, number: int) -> float:
        """Bytes of the LM head: its full gradient, its gathered weights if they are sharded, and tiles of logits."""
        whole = figures.FLOAT32 * self.shape.embedding
        gathered = whole + number * self.shape.embedding if self.shards > 1 else 0
        gradient = 0 if self.has_adapters else whole
        rows = min(self.sequences * self.tokens, figures.TILE_TOKENS)
        tile = rows * min(self.shape.vocabulary, figures.TILE_COLUMNS) * figures.FLOAT32
        return gradient + gathered + self.tiles * tile


def processes(config: RunConfig, stage: str) -> int:
    """Return the number of training processes of a stage on all nodes."""
    return config.processes(stage) * config.cluster.nodes if stage == "ngrpo_training" else 1


def engines(config: RunConfig) -> int:
    """Return the number of engines that share the rollouts of a batch: one per training process, or those on separate GPUs."""
    each = config.rollout.vllm.tensor_parallel_size if config.rollout.engine == "vllm" else 1
    if config.rollout.gpus:
        return config.rollout.gpus // each * config.cluster.nodes
    return processes(config, "ngrpo_training")


def trained_parameters(shape: ModelShape, lora: LoRAConfig | None) -> int:
    """Return the number of trainable parameters: all, or for LoRA at most `rank` per input and output of a layer's seven matrices."""
    if lora is None:
        return shape.parameters
    heads, own, hidden = shape.heads * shape.head_size, shape.kv_heads * shape.head_size, shape.hidden_size
    attention = 2 * (hidden + heads) + 2 * (hidden + own)
    return lora.rank * shape.layers * (attention + 3 * (hidden + shape.intermediate_size))


def policy_optimization(config: RunConfig, shape: ModelShape) -> Training:
    """Describe the training of the stage `ngrpo_training`."""
    settings, gpus = config.training, config.needs("ngrpo_training").gpus
    many = processes(config, "ngrpo_training")
    return Training(
        shape,
        trained_parameters(shape, settings.lora),
        _arithmetic(config, sharded=gpus > 0 and many > 1),
        shards=many if gpus else 1,
        copies=0 if gpus else many - 1,
        sequences=settings.micro_batch_size,
        tokens=config.data.max_prompt_tokens + config.rollout.max_tokens,
        checkpointing=settings.gradient_checkpointing,
        reference=settings.kl_coefficient > 0
        and settings.lora is None,  # with LoRA, it is the model without its adapters
        adam=_optimizer(settings.trl),
        tiles=figures.TILES_OF_A_KERNEL if gpus else figures.TILES,
    )


def warm_start(config: RunConfig, shape: ModelShape) -> Training:
    """Describe the training of the stage `sft_warm_start`: one process, without gradient checkpointing."""
    settings, gpus = config.warm_start, config.needs("sft_warm_start").gpus
    return Training(
        shape,
        trained_parameters(shape, settings.lora),
        _arithmetic(config, sharded=False),
        shards=1,
        copies=0,
        sequences=settings.micro_batch_size,
        tokens=settings.max_tokens,
        checkpointing=False,
        reference=False,
        adam=_optimizer(settings.trl),
        tiles=figures.TILES_OF_A_KERNEL if gpus else figures.TILES,
    )


def rollouts(config: RunConfig, shape: ModelShape) -> Generation:
    """Return the generation of each engine of the stage `ngrpo_training`."""
    training, rollout = config.training, config.rollout
    share = engines(config)
    asked = training.prompts_per_batch * rollout.group_size
    if training.selection is not None:
        source = config.data.benchmarks[training.selection.benchmark]
        problems = getattr(source, "size", None) or getattr(source, "limit", None) or 0
        asked = max(asked, problems * training.selection.samples)
    rows = min(rollout.batch_size, -(-asked // share))
    number = figures.FLOAT32 if config.model.dtype == "float32" else figures.BFLOAT16
    return Generation(rollout, shape, number, rows, config.data.max_prompt_tokens)


def gpu_of_policy_optimization(config: RunConfig, shape: ModelShape, gpu_gib: int) -> Amount:
    """Return the peak memory of each GPU in the stage `ngrpo_training`: at start-up, during rollouts or in a training step.

    If some GPUs only generate, the result is the larger of their peak and that of the training GPUs.

    Args:
        config: Configuration of the run.
        shape: Shape of the model.
        gpu_gib: Memory of a GPU in GiB, of which vLLM takes a share.
    """
    training, generation = policy_optimization(config, shape), rollouts(config, shape)
    outside = Amount.of(CUDA=figures.CUDA)
    held = training.model + _index(config, shape)
    whole = figures.FLOAT32 * shape.parameters
    start = Amount.of(whole_models_before_they_are_shared=whole * (2 if training.reference else 1))
    gathered = Amount.of(input_embedding=figures.FLOAT32 * shape.embedding if training.shards > 1 else 0)
    if config.rollout.placement == "separate":
        step = held + training.pass_
        return largest(start, held + gathered, step + _fragments(step), _apart(config, shape, gpu_gib)) + outside
    if config.rollout.engine == "transformers":
        copy = whole + (generation.number * shape.parameters if generation.number != figures.FLOAT32 else 0)
        engine = Amount.of(copy_that_generates=copy if training.shards > 1 else 0)
        resting, generating = engine, engine + generation.of_transformers
    elif config.rollout.vllm.tensor_parallel_size > 1:  # vLLM with worker processes does not sleep
        resting = generating = generation.of_vllm(gpu_gib)
    else:
        resting, generating = Amount.of(vLLM_asleep=figures.SLEEPING), generation.of_vllm(gpu_gib)
    step = held + training.pass_ + resting
    return largest(start, held + gathered + generating, step + _fragments(step)) + outside


def apart(config: RunConfig, shape: ModelShape) -> Amount:
    """Return the memory of a process that only generates, without its libraries and, for vLLM, without the KV cache."""
    generation = rollouts(config, shape)
    if config.rollout.engine == "vllm":
        return Amount.of(weights_of_vLLM=generation.weights_of_vllm)
    whole = figures.FLOAT32 * shape.parameters
    copy = whole + (generation.number * shape.parameters if generation.number != figures.FLOAT32 else 0)
    return Amount.of(copy_that_generates=copy) + generation.of_transformers + _index(config, shape)


def sent_weights(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes of the file that sends weights to separate engines; there is one per node."""
    as_they_are = config.rollout.engine == "transformers" or config.model.dtype == "float32"
    return (figures.FLOAT32 if as_they_are else figures.BFLOAT16) * shape.parameters


def gpu_of_warm_start(config: RunConfig, shape: ModelShape) -> Amount:
    """Return the peak GPU memory of the stage `sft_warm_start`."""
    training = warm_start(config, shape)
    step = training.model + training.pass_
    return step + _fragments(step) + Amount.of(CUDA=figures.CUDA)


def index_bytes(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes of the neighbor index."""
    row = (
        config.neighbors.candidates * figures.INDEX_CANDIDATE + figures.SPARES * figures.INDEX_SPARE + figures.INDEX_ROW
    )
    return shape.vocabulary * row


def _apart(config: RunConfig, shape: ModelShape, gpu_gib: int) -> Amount:
    return rollouts(config, shape).of_vllm(gpu_gib) if config.rollout.engine == "vllm" else apart(config, shape)


def _index(config: RunConfig, shape: ModelShape) -> Amount:
    if config.mixing.strategy == "token":
        return Amount(())
    followed = config.training.index_refresh == "every_batch"
    return Amount.of(
        neighbor_index=index_bytes(config, shape),
        embedding_that_the_index_follows=figures.FLOAT32 * shape.embedding if followed else 0,
    )


def _arithmetic(config: RunConfig, *, sharded: bool) -> Arithmetic:
    if config.model.dtype == "float32":
        return "float32"
    return "bfloat16" if sharded else "autocast"


def _optimizer(trl: object) -> int:
    """Return the optimizer state in bytes per parameter; 0 for optimizers other than AdamW, whose state is unknown."""
    chosen = trl.get("optim", "adamw_torch") if isinstance(trl, dict) else "adamw_torch"
    return figures.ADAM if str(chosen).startswith("adamw_torch") and "8bit" not in str(chosen) else 0


def _fragments(amount: Amount) -> Amount:
    return Amount.of(fragments=figures.FRAGMENTATION * amount.bytes)
