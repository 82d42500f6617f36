"""Memory, scratch space and time that each stage needs."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.config import FilesSource, HubSource, InitializedModel, PackagedModel, RunConfig
from ngrpo.config.cluster import ResourcesConfig
from ngrpo.config.sources import CopiedModel, is_bucket
from ngrpo.data.locations import is_local
from ngrpo.sizing import figures, training
from ngrpo.sizing.amounts import GIB, Amount, largest
from ngrpo.sizing.durations import Duration, duration
from ngrpo.sizing.generation import Generation
from ngrpo.sizing.model_shape import ModelShape, model_shape
from ngrpo.training.checkpoint_size import checkpoints_bytes


@dataclass(frozen=True)
class Needs:
    """Upper bounds of a stage's needs."""

    gpu: Amount | None
    """Memory of each GPU; None if the stage has none."""
    memory: Amount
    """Memory of the pod; for several nodes, of each node's pod."""
    scratch: Amount
    """Scratch space of the pod."""
    duration: Duration


def needs_of(config: RunConfig, stage: str, shape: ModelShape | None = None) -> Needs | None:
    """Return what a stage needs, or None if the shape of the model or the needs of the stage are unknown.

    Args:
        config: Configuration of the run.
        stage: Name of the stage.
        shape: Shape of the base model, if the caller knows it; by default that of `model_shape`.
    """
    known = model_shape(config.model.source) if shape is None else shape
    if known is None or stage not in _MEMORY:
        return None
    memory, scratch = _MEMORY[stage](config, known), _SCRATCH[stage](config, known)
    asked = config.needs(stage)
    gpu = _gpu(config, stage, known, asked) if asked.gpus else None
    shared = Amount.of(shared_memory=config.cluster.gpu.shared_memory_gib * GIB if asked.gpus else 0)
    return Needs(gpu, memory + shared, scratch, duration(config, stage, known, answers(config, known)))


def gpu_gib(config: RunConfig, asked: ResourcesConfig) -> int:
    """Return the memory of a stage's GPUs in GiB: the stage's setting, otherwise that of the cluster."""
    return asked.gpu_memory_gib or config.cluster.gpu.memory_gib


def answers(config: RunConfig, shape: ModelShape) -> Generation:
    """Return the generation of each process of the stage `benchmark_evaluation`."""
    number = figures.FLOAT32 if config.model.dtype == "float32" else figures.BFLOAT16
    rows = config.evaluation.batch_size
    sizes = [
        getattr(source, "size", None) or getattr(source, "limit", None) for source in config.data.benchmarks.values()
    ]
    if all(sizes):
        rows = min(rows, max(size or 0 for size in sizes) * config.evaluation.samples)
    return Generation(config.evaluation, shape, number, rows, config.data.max_prompt_tokens)


# --- memory of a GPU ------------------------------------------------------------------------------------------------------


def _gpu(config: RunConfig, stage: str, shape: ModelShape, asked: ResourcesConfig) -> Amount:
    outside = Amount.of(CUDA=figures.CUDA)
    if stage == "ngrpo_training":
        return training.gpu_of_policy_optimization(config, shape, gpu_gib(config, asked))
    if stage == "sft_warm_start" and config.warm_start.steps:
        return training.gpu_of_warm_start(config, shape)
    if stage == "benchmark_evaluation":
        generation = answers(config, shape)
        if config.evaluation.engine == "vllm":
            return generation.of_vllm(gpu_gib(config, asked)) + outside
        return Amount.of(weights=generation.number * shape.parameters) + generation.of_transformers + outside
    if stage == "neighbor_index":
        return _building(config, shape) + outside
    return outside


# --- memory of a pod ------------------------------------------------------------------------------------------------------


def _process(stage: str, asked: ResourcesConfig, many: int = 1) -> Amount:
    return Amount.of(libraries=many * (figures.LIBRARIES[stage] + (figures.GPU_PROCESS if asked.gpus else 0)))


def _memory_of_data(config: RunConfig, shape: ModelShape) -> Amount:
    return _process("prepare_data", config.needs("prepare_data")) + Amount.of(data_sets=_data_sets(config))


def _memory_of_index(config: RunConfig, shape: ModelShape) -> Amount:
    made = isinstance(config.model.source, InitializedModel | PackagedModel)
    # A model that does not come as safetensors files is built first: it holds the weights twice, and a third time while writing.
    making = Amount.of(base_model_as_it_is_made=3 * figures.FLOAT32 * shape.parameters if made else 0)
    return _process("neighbor_index", config.needs("neighbor_index")) + largest(making, _building(config, shape))


def _building(config: RunConfig, shape: ModelShape) -> Amount:
    return Amount.of(
        embedding=(shape.stored + figures.FLOAT32) * shape.embedding,
        rows=figures.BUILD_ROW * shape.vocabulary,
        tile=figures.BUILD_TILE * min(config.neighbors.block_rows, shape.vocabulary) ** 2,
    )


def _memory_of_warm_start(config: RunConfig, shape: ModelShape) -> Amount:
    asked, base = config.needs("sft_warm_start"), _process("sft_warm_start", config.needs("sft_warm_start"))
    whole = figures.FLOAT32 * shape.parameters
    making = Amount.of(base_model_as_it_is_made=3 * whole)
    if not config.warm_start.steps:
        made = isinstance(config.model.source, InitializedModel | PackagedModel)
        return base + (making if made else Amount(()))
    if asked.gpus:
        return base + Amount.of(model_as_it_is_loaded=whole)
    step = training.warm_start(config, shape)
    return base + largest(making, step.model + step.pass_)


def _memory_of_training(config: RunConfig, shape: ModelShape) -> Amount:
    asked, separate = config.needs("ngrpo_training"), config.rollout.placement == "separate"
    many = config.processes("ngrpo_training")
    base = _process("ngrpo_training", asked, max(asked.gpus, 2 if separate else 1)) + _graders(asked)
    whole = figures.FLOAT32 * shape.parameters
    if not asked.gpus and separate:
        # Trainer and engine work at the same time. The file of the sent weights is deleted before.
        step = training.policy_optimization(config, shape)
        sending = Amount.of(weights_as_they_are_sent=training.sent_weights(config, shape))
        cache = training.rollouts(config, shape)
        held = Amount.of(keys_and_values_of_vLLM=cache.cache * cache.rows if config.rollout.engine == "vllm" else 0)
        return base + step.model + training.apart(config, shape) + largest(step.pass_ + held, sending)
    if not asked.gpus:
        step, generation = training.policy_optimization(config, shape), training.rollouts(config, shape)
        engine = (
            generation.of_transformers
            if config.rollout.engine == "transformers"
            else Amount.of(
                weights_of_vLLM=generation.weights_of_vllm, keys_and_values_of_vLLM=generation.cache * generation.rows
            )
        )
        return base + step.model + largest(step.pass_, engine)
    loading = Amount.of(models_as_they_are_loaded=(many + config.rollout.gpus) * whole)
    saving = Amount.of(result_as_it_is_gathered=_result(config, shape))
    return base + largest(loading, saving)


def _memory_of_evaluation(config: RunConfig, shape: ModelShape) -> Amount:
    asked, generation = config.needs("benchmark_evaluation"), answers(config, shape)
    many = max(asked.gpus, 1)
    base = _process("benchmark_evaluation", asked, many) + _graders(asked)
    weights = generation.number * shape.parameters
    if asked.gpus:
        return base + Amount.of(models_as_they_are_loaded=many * weights)
    if config.evaluation.engine == "vllm":
        engine = Amount.of(weights_of_vLLM=weights, keys_and_values_of_vLLM=generation.rows * generation.cache)
        return base + Amount.of(weights=weights) + engine
    # The weights file is memory-mapped while it is read.
    loading = Amount.of(file_of_the_weights=figures.FLOAT32 * shape.parameters)
    return base + Amount.of(weights=weights) + largest(loading, generation.of_transformers)


def _memory_of_promotion(config: RunConfig, shape: ModelShape) -> Amount:
    return _process("model_promotion", config.needs("model_promotion"))


def _memory_of_deployment(config: RunConfig, shape: ModelShape) -> Amount:
    asked = config.needs("deploy")
    # The stage evaluates the served model, and compares it with the local weights.
    base = _process("benchmark_evaluation", asked) + _graders(asked)
    number = figures.FLOAT32 if config.model.dtype == "float32" else figures.BFLOAT16
    return base + Amount.of(weights=number * shape.parameters, file_of_the_weights=_result(config, shape))


def _graders(asked: ResourcesConfig) -> Amount:
    return Amount.of(graders=asked.cpus * figures.GRADER)


# --- scratch --------------------------------------------------------------------------------------------------------------


def _scratch_of_data(config: RunConfig, shape: ModelShape) -> Amount:
    return Amount.of(data_sets=2 * _data_sets(config), tables=_data_sets(config))


def _scratch_of_index(config: RunConfig, shape: ModelShape) -> Amount:
    return Amount.of(base_model=_base(config, shape, whole=False), neighbor_index=training.index_bytes(config, shape))


def _scratch_of_warm_start(config: RunConfig, shape: ModelShape) -> Amount:
    base, start = _base(config, shape), _start(config, shape)
    if not config.warm_start.steps:
        # Downloaded files are linked into the result. A local directory may be on another disk, so it is copied.
        return Amount.of(base_model=base, copy_of_it=0 if base else start)
    trained = training.trained_parameters(shape, config.warm_start.lora)
    return Amount.of(
        base_model=base,
        data_sets=_data_sets(config),
        checkpoints=checkpoints_bytes(trained),
        result=start,
    )


def _scratch_of_training(config: RunConfig, shape: ModelShape) -> Amount:
    index = training.index_bytes(config, shape)
    selection = config.training.selection is not None
    trained = training.trained_parameters(shape, config.training.lora)
    adapters = figures.FLOAT32 * trained if config.training.lora else 0
    return Amount.of(
        start=_start(config, shape),
        neighbor_index=index,
        data_sets=_data_sets(config),
        checkpoints=checkpoints_bytes(trained, nodes=config.cluster.nodes, selection=selection)
        + figures.CHECKPOINTS * index,
        result=_result(config, shape) + adapters,
    )


def _scratch_of_evaluation(config: RunConfig, shape: ModelShape) -> Amount:
    return Amount.of(
        base_model=_base(config, shape) if config.warm_start.steps else 0,
        start=_start(config, shape),
        trained_model=_result(config, shape),
        data_sets=_data_sets(config),
    )


def _scratch_of_promotion(config: RunConfig, shape: ModelShape) -> Amount:
    model = _result(config, shape)
    return Amount.of(trained_model=model, model_as_it_is_read_back=model)


def _scratch_of_deployment(config: RunConfig, shape: ModelShape) -> Amount:
    return Amount.of(trained_model=_result(config, shape), data_sets=_data_sets(config))


def _result(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes of the trained model, in `model.dtype`."""
    return (figures.FLOAT32 if config.model.dtype == "float32" else figures.BFLOAT16) * shape.parameters


def _base(config: RunConfig, shape: ModelShape, *, whole: bool = True) -> float:
    """Return the bytes of the base model's files if they are downloaded or generated; a local directory is only linked."""
    source = config.model.source
    if isinstance(source, CopiedModel) and is_bucket(source.location):
        return shape.stored * shape.parameters if whole else 0  # the stage `neighbor_index` reads only the embedding
    if isinstance(source, CopiedModel) and is_local(source.location):
        return 0
    return shape.stored * shape.parameters


def _start(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes of the model that training starts from: the warm start in float32, or the base model unchanged."""
    return (figures.FLOAT32 if config.warm_start.steps else shape.stored) * shape.parameters


def _data_sets(config: RunConfig) -> float:
    sources = [*config.data.training_sets().values(), config.data.warm_start, *config.data.benchmarks.values()]
    return figures.DATA_SETS if any(isinstance(source, HubSource | FilesSource) for source in sources) else 0


_MEMORY = {
    "prepare_data": _memory_of_data,
    "neighbor_index": _memory_of_index,
    "sft_warm_start": _memory_of_warm_start,
    "ngrpo_training": _memory_of_training,
    "benchmark_evaluation": _memory_of_evaluation,
    "model_promotion": _memory_of_promotion,
    "deploy": _memory_of_deployment,
}
_SCRATCH = {
    "prepare_data": _scratch_of_data,
    "neighbor_index": _scratch_of_index,
    "sft_warm_start": _scratch_of_warm_start,
    "ngrpo_training": _scratch_of_training,
    "benchmark_evaluation": _scratch_of_evaluation,
    "model_promotion": _scratch_of_promotion,
    "deploy": _scratch_of_deployment,
}
