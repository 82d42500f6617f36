"""Compiles the fused kernels for a GPU, which needs none, and says what came of it: the interpreter takes what the compiler does not."""

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ngrpo.rollout.fused.decision import decide_rows
from ngrpo.rollout.fused.launch import BLOCK, DIMENSION_BLOCK, WARPS
from ngrpo.rollout.fused.mixture import mix_rows
from ngrpo.rollout.fused.scan import scan_blocks

TYPES = {
    "int64": "slots positions tokens seeds strategies rows",
    "int32": "places candidates anchored neighbors",
    "int16": "progress transitions",
    "int1": "emits mixed eligible",
    "fp64": "rates",
    "fp32": "maxima sums drawn_maxima drawn_sums temperatures weights logprobs",
    "bf16": "logits drawn output vectors",
}
"""Of what arguments point at, by name; the others are whole numbers."""
POINTERS = {name: f"*{kind.replace('int', 'i')}" for kind, names in TYPES.items() for name in names.split()}
DECIDING = {"BLOCK": BLOCK, "BLOCKS": 64, "WIDTH": 4}
WITHOUT_MIXING = dict.fromkeys(["anchored", "neighbors", "eligible", "transitions"])
VARIANTS = (
    (scan_blocks, {"SCALED": False, "BLOCK": BLOCK}, {}),
    (scan_blocks, {"SCALED": True, "BLOCK": BLOCK}, {"logits": "*fp32"}),
    (decide_rows, {"MIXES": True, "ENDS": True, "NUCLEUS": False, **DECIDING}, {}),
    (decide_rows, {"MIXES": True, "ENDS": True, "NUCLEUS": True, **DECIDING}, {"drawn": "*fp32"}),
    (decide_rows, {"MIXES": False, "ENDS": False, "NUCLEUS": False, **DECIDING, **WITHOUT_MIXING}, {}),
    (mix_rows, {"INDEXED": True, "LOOKED_UP": False, "BLOCK": DIMENSION_BLOCK}, {}),
    (mix_rows, {"INDEXED": False, "LOOKED_UP": True, "BLOCK": DIMENSION_BLOCK, "rows": None}, {}),
)


def main() -> None:
    compiled = []
    for kernel, constants, types in VARIANTS:
        signature = {
            name: "constexpr" if name in constants else (POINTERS | types).get(name, "i32") for name in kernel.arg_names
        }
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(kernel, signature, constexprs=places)
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": WARPS})
        division = "div.rn.f32" in binary.asm["ptx"]
        compiled.append({"kernel": kernel.fn.__name__, "bytes": len(binary.asm["cubin"]), "ieee_division": division})
    print(json.dumps(compiled))


if __name__ == "__main__":
    main()
