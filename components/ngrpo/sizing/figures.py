"""The figures that cannot be computed from a configuration, each with where it comes from. `docs/sizing.md` repeats them."""

from __future__ import annotations

from ngrpo.sizing.amounts import GIB, MIB

FLOAT32, BFLOAT16 = 4, 2
"""Bytes of a number."""
ADAM = 8
"""Bytes a parameter: two moments in float32 (`torch.optim.AdamW` over float32 weights)."""
CHECKPOINTS = 3
"""Checkpoints with an index that are on disk at once: the two that are kept and the best (`ngrpo.training.checkpoint_size`)."""

ACTIVATIONS = {"float32": (40, 16), "bfloat16": (24, 8), "autocast": (34, 8)}
"""Bytes that a layer keeps of each token for its backward pass: of each unit of the hidden size, and of the feed-forward width. Counted
over the tensors that autograd saves for layers of Llama and Qwen2 (transformers 5.19, torch 2.13): `tests/unit/test_sizing.py`."""
LAYER_INPUT = {"float32": FLOAT32, "bfloat16": BFLOAT16, "autocast": FLOAT32}
"""Bytes that gradient checkpointing keeps of each token and layer, for each unit of the hidden size."""
TILE_TOKENS, TILE_COLUMNS = 4096, 32768
"""Logits that TRL's fused LM head forms at a time (`trl.kernels.chunked_logprob`)."""
TILES, TILES_OF_A_KERNEL = 10, 2
"""Tiles of that size that are in memory at once without Triton's kernel (temporaries of `_backward_tile`), and with it."""
LOGITS_OF_A_STEP = 32
"""Bytes for each token of the vocabulary and each row that is decoded: logits, their float64 sums, a sort where there is a nucleus."""
INDEX_CANDIDATE, INDEX_SPARE, INDEX_ROW, SPARES = 12, 8, 5, 32
"""Bytes of the neighbor index: of a neighbor, of a spare, of a row; and spares a row (`ngrpo.neighbors.index`)."""
BUILD_ROW, BUILD_TILE = 2048, 16
"""Bytes a token, and a score of a tile, while the index is built (`neighbors.block_rows`)."""

LIBRARIES = {
    "prepare_data": 1000 * MIB,
    "neighbor_index": 900 * MIB,
    "sft_warm_start": 1000 * MIB,
    "ngrpo_training": 1000 * MIB,
    "benchmark_evaluation": 950 * MIB,
    "model_promotion": 450 * MIB,
}
"""Memory of a stage's process without a model worth mentioning: measured on `tiny` and
`smollm2` on a processor, and a tenth to a fifth more."""
GPU_PROCESS = 4 * GIB
"""Further memory of a process that uses a GPU: CUDA's libraries, pinned buffers. Assumed; not measured."""
GRADER = 64 * MIB
"""Memory of one process that grades: `make bench ARGS=grading`."""
CUDA = int(1.5 * GIB)
"""Memory of a GPU outside of torch's allocator: CUDA's context, NCCL's buffers, kernels. Assumed; not measured."""
SLEEPING = 1 * GIB
"""Memory of a GPU that vLLM keeps while it sleeps: CUDA graphs, workspaces. Assumed; not measured."""
FRAGMENTATION = 0.1
"""Share of what training allocates that torch's allocator holds on top. Assumed; not measured."""
DATA_SETS = 2 * GIB
"""Allowance for data sets that are read from a hub or from files: their size is not known before they are."""

BUILD_FLOPS_A_CORE = 74e9
"""Floating-point operations a second and core while the index is built: 151,936 x 1,536 in 239 s on two cores with AVX2
(`make bench ARGS=full_neighbor_index`)."""

GPU_FLOPS, GPU_FLOPS_USED = 312e12, 0.4
"""Operations a second of an A100 in bfloat16 (NVIDIA's data sheet), and the share of them that training reaches. The share is assumed; not
measured."""
GPU_BYTES_A_SECOND, GPU_BANDWIDTH_USED = 2.04e12, 0.6
"""Bytes a second that an A100 of 80 GB reads from its memory (NVIDIA's data sheet), and the share of them that vLLM reaches. The share is
assumed; not measured."""
