"""Constants that cannot be computed from a configuration, each with its origin. `docs/sizing.md` lists them as well."""

from __future__ import annotations

from ngrpo.sizing.amounts import GIB, MIB

FLOAT32, BFLOAT16 = 4, 2
"""Bytes per number."""
ADAM = 8
"""Bytes per parameter: two moments in float32 (`torch.optim.AdamW` on float32 weights)."""
CHECKPOINTS = 3
"""Checkpoints with an index on disk at the same time: the last two and the best (`ngrpo.training.checkpoint_size`)."""

ACTIVATIONS = {"float32": (40, 16), "bfloat16": (24, 8), "autocast": (34, 8)}
"""Bytes per token and layer that autograd saves for the backward pass: per unit of the hidden size, and of the intermediate size. Counted
for layers of Llama and Qwen2 (transformers 5.19, torch 2.13) in `tests/unit/test_sizing.py`."""
LAYER_INPUT = {"float32": FLOAT32, "bfloat16": BFLOAT16, "autocast": FLOAT32}
"""Bytes per token, layer and unit of the hidden size that gradient checkpointing keeps."""
TILE_TOKENS, TILE_COLUMNS = 4096, 32768
"""Size of a tile of logits in TRL's fused LM head (`trl.kernels.chunked_logprob`)."""
TILES, TILES_OF_A_KERNEL = 10, 2
"""Tiles in memory at the same time without the Triton kernel (temporaries of `_backward_tile`), and with it."""
LOGITS_OF_A_STEP = 32
"""Bytes per vocabulary token and decoded row: logits, their float64 sums, and a sort for nucleus sampling."""
INDEX_CANDIDATE, INDEX_SPARE, INDEX_ROW, SPARES = 12, 8, 5, 32
"""Bytes in the neighbor index per neighbor, per spare and per row; number of spares per row (`ngrpo.neighbors.index`)."""
BUILD_ROW, BUILD_TILE = 2048, 16
"""Bytes per token, and per score of a tile, while the index is built (`neighbors.block_rows`)."""

LIBRARIES = {
    "prepare_data": 1000 * MIB,
    "neighbor_index": 900 * MIB,
    "sft_warm_start": 1000 * MIB,
    "ngrpo_training": 1000 * MIB,
    "benchmark_evaluation": 950 * MIB,
    "model_promotion": 450 * MIB,
}
"""Memory of a stage's process with a negligible model, in bytes: measured with `tiny` and `smollm2` on a CPU, plus 10 to 20 %."""
GPU_PROCESS = 4 * GIB
"""Additional bytes of a process that uses a GPU: CUDA libraries, pinned buffers. Assumed; not measured."""
GRADER = 64 * MIB
"""Bytes of one grading process, measured with `make bench ARGS=grading`."""
CUDA = int(1.5 * GIB)
"""GPU memory outside torch's allocator, in bytes: CUDA context, NCCL buffers, kernels. Assumed; not measured."""
SLEEPING = 1 * GIB
"""GPU memory that vLLM keeps in sleep mode, in bytes: CUDA graphs, workspaces. Assumed; not measured."""
FRAGMENTATION = 0.1
"""Overhead of torch's allocator, as a share of what training allocates. Assumed; not measured."""
DATA_SETS = 2 * GIB
"""Allowance in bytes for data sets from the hub or from files, whose size is not known before they are read."""

BUILD_FLOPS_A_CORE = 74e9
"""FLOP per second and core while the index is built: 151,936 x 1,536 in 239 s on two cores with AVX2
(`make bench ARGS=full_neighbor_index`)."""

GPU_FLOPS, GPU_FLOPS_USED = 312e12, 0.4
"""FLOP per second of an A100 in bfloat16 (NVIDIA's data sheet), and the share of it that training reaches. The share is assumed; not
measured."""
GPU_BYTES_A_SECOND, GPU_BANDWIDTH_USED = 2.04e12, 0.6
"""Memory bandwidth of an A100 with 80 GB, in bytes per second (NVIDIA's data sheet), and the share of it that vLLM reaches. The share is
assumed; not measured."""
