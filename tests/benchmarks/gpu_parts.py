"""The parts of `make gpu-check`, one after the other in processes of their own (`gpu_check.py`).

Imports nothing but torch, Triton and what of ours needs no more; vLLM and transformers where they are there and a part compares with them.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.strategies import Neighbor
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.slots import MixingSlots, RequestSettings

OUTPUT = Path("outputs/bench")
K, RATE, TEMPERATURE, CANDIDATES = 3, 0.1, 0.7, 32
WEIGHT_BOUND, LOGPROB_BOUND, TOKEN_SHARE = 1e-5, 1e-4, 1e-3
"""How far kernels and reference may differ: weights, log-probabilities, and the share of drawn tokens, where a sum that is rounded
otherwise moves a border past the number that was drawn."""


@dataclass(frozen=True)
class Size:
    """What is measured, on which device.

    Attributes:
        device: A GPU; the tests of this file use a processor, where kernels and memory are left out.
        vocabulary: V.
        hidden: Width of the embedding matrix.
        batches: Sequences decoded together.
        steps: Decode steps of a comparison.
        rounds: Times that something short is measured.
        block_rows: See `NeighborIndex.build`.
        layers: Of the model whose weights are passed on.
    """

    device: torch.device
    vocabulary: int = 151_936
    hidden: int = 1536
    batches: tuple[int, ...] = (32, 256)
    steps: int = 24
    rounds: int = 50
    block_rows: int = 8192
    layers: int = 28

    @property
    def gpu(self) -> bool:
        """Whether there are kernels to compare with."""
        return self.device.type == "cuda"


def kernels(size: Size) -> dict[str, Any]:
    """The kernels against the reference: the same gates and anchors, and nearly the same weights and draws."""
    torch.manual_seed(0)
    batch = size.batches[0]
    both = [_slots(size, batch, fused) for fused in (True, False)]
    table = torch.randn(size.vocabulary, 64, device=size.device)
    rows = [_rows(size, slots, batch) for slots in both]
    emits = torch.ones(batch, dtype=torch.bool, device=size.device)
    names = [each.name for each in _requests(size, batch)]
    drawn = differing = 0
    mixtures = 0.0
    for position in range(size.steps):
        logits = 4 * torch.randn(batch, size.vocabulary, device=size.device)
        logits = logits.bfloat16() if position % 2 else logits
        at = torch.full_like(rows[0], position)
        tokens = [slots.decide(logits, its, at, emits) for slots, its in zip(both, rows, strict=True)]
        drawn, differing = drawn + batch, differing + int((tokens[0] != tokens[1]).sum())
        mixed = [
            slots.mix(lambda ids: table[ids], table[tokens[1]], its, at) for slots, its in zip(both, rows, strict=True)
        ]
        mixtures = max(mixtures, float((mixed[0] - mixed[1]).abs().max()))
    records = list(zip(*(slots.take(names) for slots in both), strict=True))
    gates = all(torch.equal(ours.mixed, theirs.mixed) for ours, theirs in records)
    weights = max(float((ours.weights - theirs.weights).abs().max()) for ours, theirs in records)
    # Tokens that were drawn otherwise have another probability.
    apart = torch.cat([(ours.logprobs - theirs.logprobs).abs() for ours, theirs in records]) > LOGPROB_BOUND
    steps_mixed = sum(int(ours.mixed.sum()) for ours, _ in records)
    allowed = max(1, round(TOKEN_SHARE * drawn))
    within = differing <= allowed and int(apart.sum()) <= differing and weights <= WEIGHT_BOUND and mixtures <= 1e-4
    return {
        "ok": gates and within and 0 < steps_mixed < drawn,
        "steps": drawn,
        "steps_mixed": steps_mixed,
        "same_gates": gates,
        "tokens_that_differ": differing,
        "log_probabilities_that_differ": int(apart.sum()),
        "weights_differ_at_most": weights,
        "mixtures_differ_at_most": mixtures,
    }


def synchronisation(size: Size) -> dict[str, Any]:
    """Requests join, a step is decided and mixed, requests end and their slots are given to others: nothing waits for the device."""
    batch = size.batches[0]
    slots = _slots(size, batch, True)
    step, _ = _step(size, slots, batch)
    later = [
        [
            (f"{turn}-{each.name}", RequestSettings(**{**vars(each), "name": f"{turn}-{each.name}"}))
            for each in _requests(size, batch)
        ]
        for turn in range(3)
    ]
    running = [each.name for each in _requests(size, batch)]
    step()  # kernels are compiled
    _wait(size)
    _refuse_to_wait(size, True)
    try:
        for joining in later:
            slots.finish(running)
            slots.join(joining)
            running = [request for request, _ in joining]
            step()
    finally:
        _refuse_to_wait(size, False)
    records = slots.take([settings.name for _, settings in later[-1]])
    return {"ok": len(records) == batch, "steps": len(later), "mode": "error"}


def step(size: Size) -> dict[str, Any]:
    """Microseconds of a step of ours, against the operations of a stock sampler and against a search of the whole vocabulary."""
    embedding = torch.randn(size.vocabulary, size.hidden, device=size.device, dtype=torch.bfloat16)
    normalized = normalize(embedding.float(), dim=1).bfloat16()
    results: dict[str, Any] = {"ok": True, "unit": "microseconds", "k": K, "rate": RATE}
    for batch in size.batches:
        logits = 4 * torch.randn(batch, size.vocabulary, device=size.device, dtype=torch.bfloat16)
        figures = {}
        for name, fused in (("kernels", True), ("torch", False)):
            slots = _slots(size, batch, fused)
            decide_and_mix, decide = _step(size, slots, batch, embedding)
            figures[f"ours_{name}"] = _microseconds(size, decide_and_mix)
            figures[f"ours_{name}_decide"] = _microseconds(size, decide)
        figures["stock_operations"] = _microseconds(size, lambda logits=logits: _stock(logits))
        if size.gpu and importlib.util.find_spec("vllm") is not None:
            figures["stock_vllm"] = _microseconds(size, _vllm_sampler(logits))

        def search(logits: Tensor = logits) -> Tensor:
            _stock(logits)
            anchors = logits.argmax(dim=-1)
            candidates = (normalized[anchors] @ normalized.T).topk(K, dim=1).indices
            weights = logits.gather(1, candidates).float().softmax(dim=-1)
            return (embedding[candidates].float() * weights[..., None]).sum(dim=1)

        figures["search_at_every_step"] = _microseconds(size, search)
        for peer in ("stock_operations", "stock_vllm", "search_at_every_step"):
            if peer in figures:
                figures[f"ratio_to_{peer}"] = round(figures["ours_kernels"] / figures[peer], 3)
        results[f"batch_{batch}"] = figures
    return results


def index(size: Size) -> dict[str, Any]:
    """Seconds of building a neighbor index, and of refreshing it after the weights moved a little: the same neighbors as built anew."""
    torch.manual_seed(0)
    matrix = torch.randn(size.vocabulary, size.hidden, device=size.device)
    eligible = torch.ones(size.vocabulary, dtype=torch.bool, device=size.device)
    moved = matrix + 1e-5 * torch.randn_like(matrix)

    def build(embedding: Tensor) -> NeighborIndex:
        return NeighborIndex.build(embedding, eligible, candidates=CANDIDATES, block_rows=size.block_rows)

    built, building = _seconds(size, lambda: build(matrix))
    refreshed, refreshing = _seconds(size, lambda: built.refresh(matrix, moved, block_rows=size.block_rows))
    anew, again = _seconds(size, lambda: build(moved))
    return {
        "ok": torch.equal(refreshed.neighbors, anew.neighbors),
        "unit": "s",
        "build": building,
        "build_again": again,
        "refresh": refreshing,
        "rows_searched_by_the_refresh": refreshed.statistics["searched"],
    }


def nucleus(size: Size) -> dict[str, Any]:
    """MiB that a step takes beyond its logits with `top_p=0.95`, kernels and reference, against a sort of every row."""
    batch = size.batches[-1]
    logits = 4 * torch.randn(batch, size.vocabulary, device=size.device, dtype=torch.bfloat16)
    figures: dict[str, Any] = {"ok": True, "unit": "MiB", "batch": batch, "logits": _mib(logits)}
    for name, fused in (("kernels", True), ("torch", False)):
        slots = _slots(size, batch, fused, top_p=0.95)
        _, decide = _step(size, slots, batch)
        figures[name] = _peak(size, decide)
    figures["sort"] = _peak(size, lambda: logits.float().sort(dim=-1))
    return figures


def weights(size: Size) -> dict[str, Any]:
    """Seconds of giving an engine new weights: cast on the device, and, where vLLM is there, taken by it awake and asleep."""
    count, cast = _cast(size)
    figures: dict[str, Any] = {"ok": True, "unit": "s", "parameters": count, "cast": cast}
    if size.gpu and importlib.util.find_spec("vllm") is not None:
        figures |= _weights_of_vllm(size)
    return figures


def engine(size: Size) -> dict[str, Any]:
    """Decode steps of our vLLM engine, with and without mixing, against stock vLLM (`tests/benchmarks/vllm_stock.py`)."""
    if not size.gpu or importlib.util.find_spec("vllm") is None:
        return {"ok": True, "left_out": "vLLM cannot be imported, or there is no GPU"}
    from tests.benchmarks import vllm_stock

    shape = vllm_stock.SHAPE | {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": 6 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    }
    results = vllm_stock.run(
        rounds=10, shape=shape, batch=size.batches[0], steps=128, dtype="bfloat16", gpu_memory_utilization=0.4
    )
    return {"ok": True} | {result["name"]: result for result in results}


PARTS: dict[str, Callable[[Size], dict[str, Any]]] = {
    part.__name__: part for part in (kernels, synchronisation, step, index, nucleus, weights, engine)
}


def _requests(size: Size, batch: int, top_p: float = 1.0) -> list[RequestSettings]:
    """Every fourth request does not mix."""
    return [
        RequestSettings(
            name=f"r{row}",
            seed=row + 2**40,
            temperature=TEMPERATURE,
            top_p=top_p,
            max_tokens=size.steps,
            rate=RATE if row % 4 else 0.0,
            strategy=0 if row % 4 else None,
        )
        for row in range(batch)
    ]


def _slots(size: Size, batch: int, fused: bool, top_p: float = 1.0) -> MixingSlots:
    """Slots with a batch of requests, by the kernels or by torch; on a processor there are no kernels."""
    slots = MixingSlots(size.device, 2 * batch, **({"fused": fused} if size.gpu else {}))
    slots.add_strategy(0, Neighbor(K))
    generator = torch.Generator().manual_seed(0)
    neighbors = torch.randint(0, size.vocabulary, (size.vocabulary, CANDIDATES), generator=generator, dtype=torch.int32)
    eligible = torch.ones(size.vocabulary, dtype=torch.bool)
    eligible[:100] = False
    marker = EndMarker.of(
        "ab", [b"a" if token % 50 == 1 else b"b" if token % 50 == 2 else b"c" for token in range(size.vocabulary)]
    )
    slots.set_index(neighbors, eligible, marker)
    slots.join([(each.name, each) for each in _requests(size, batch, top_p)])
    return slots


def _rows(size: Size, slots: MixingSlots, batch: int) -> Tensor:
    """Return the slots of the batch that `_slots` begins with."""
    return torch.tensor([slots.slot(each.name) for each in _requests(size, batch)], device=size.device)


def _step(
    size: Size, slots: MixingSlots, batch: int, embedding: Tensor | None = None
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a step that decides and mixes, and one that only decides."""
    if embedding is None:
        embedding = torch.randn(size.vocabulary, 64, device=size.device)
    logits = 4 * torch.randn(batch, size.vocabulary, device=size.device, dtype=torch.bfloat16)
    rows = _rows(size, slots, batch)
    emits, at = torch.ones_like(rows, dtype=torch.bool), torch.ones_like(rows)

    def decide() -> Tensor:
        return slots.decide(logits, rows, at, emits)

    def decide_and_mix() -> Tensor:
        return slots.mix(lambda ids: embedding[ids], embedding[decide()], rows, at)

    return decide_and_mix, decide


def _stock(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What vLLM's sampler does for a batch without top-k and top-p that asks for log-probabilities: tokens, theirs, and their ranks."""
    logits = logits.float()
    logprobs = logits.log_softmax(dim=-1)
    probabilities = logits.div(TEMPERATURE).softmax(dim=-1)
    tokens = probabilities.div_(torch.empty_like(probabilities).exponential_()).argmax(dim=-1)
    chosen = logprobs.gather(1, tokens[:, None])
    return tokens, chosen, (logprobs >= chosen).sum(dim=-1)


def _vllm_sampler(logits: Tensor) -> Callable[[], object]:
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.sampler import Sampler

    batch = len(logits)
    none = torch.zeros(batch, device=logits.device)
    metadata = SamplingMetadata(
        temperature=torch.full_like(none, TEMPERATURE),
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=0,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=none,
        presence_penalties=none,
        repetition_penalties=none + 1,
        output_token_ids=[[] for _ in range(batch)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )
    sampler = Sampler()
    return lambda: sampler(logits, metadata)


def _cast(size: Size) -> tuple[int, float]:
    """Return the number of parameters of a model's layers, and the seconds that casting them to bfloat16 takes."""
    shapes = [(size.hidden, 6 * size.hidden), (6 * size.hidden, size.hidden), (size.hidden, size.hidden)]
    parameters = [torch.randn(shape, device=size.device) for shape in shapes * size.layers]
    _, seconds = _seconds(size, lambda: [parameter.to(torch.bfloat16) for parameter in parameters])
    return sum(parameter.numel() for parameter in parameters), seconds


def _weights_of_vllm(size: Size) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    from ngrpo.rollout.vllm.engine import VLLMEngine

    with torch.device(size.device):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size.vocabulary,
                hidden_size=size.hidden,
                intermediate_size=6 * size.hidden,
                num_hidden_layers=size.layers,
                num_attention_heads=12,
                num_key_value_heads=2,
                tie_word_embeddings=True,
            )
        )
    with tempfile.TemporaryDirectory() as directory:
        model.to(torch.bfloat16).save_pretrained(directory)
        model.float()
        ours = VLLMEngine(
            Path(directory), [], max_length=256, batch_size=size.batches[0], dtype="bfloat16", enforce_eager=True
        )
    ours.load_weights(model.named_parameters())
    _, awake = _seconds(size, lambda: ours.load_weights(model.named_parameters()))
    _, asleep = _seconds(size, ours.sleep)
    free = torch.cuda.mem_get_info()[0]
    _, waking = _seconds(size, lambda: ours.load_weights(model.named_parameters()))
    given_back = free - torch.cuda.mem_get_info()[0]
    ours.close()
    count = sum(parameter.numel() for parameter in model.parameters())
    return {
        "vllm_parameters": count,
        "vllm_load": awake,
        "vllm_sleep": asleep,
        "vllm_wake_and_load": waking,
        "vllm_gib_given_back_asleep": round(given_back / 2**30, 2),
    }


def _wait(size: Size) -> None:
    if size.gpu:
        torch.cuda.synchronize()


def _refuse_to_wait(size: Size, refuse: bool) -> None:
    if size.gpu:
        torch.cuda.set_sync_debug_mode("error" if refuse else "default")


def _seconds(size: Size, work: Callable[[], Any]) -> tuple[Any, float]:
    _wait(size)
    started = time.perf_counter()
    result = work()
    _wait(size)
    return result, round(time.perf_counter() - started, 4)


def _microseconds(size: Size, work: Callable[[], object]) -> float:
    """Return the median of the rounds, each from the launch of its first operation to the end of its last."""
    for _ in range(3):
        work()
    return round(1e6 * statistics.median(_seconds(size, work)[1] for _ in range(size.rounds)), 1)


def _peak(size: Size, work: Callable[[], object]) -> float | None:
    """Return the MiB that a piece of work takes at its peak beyond what was held before; none on a processor."""
    work()
    if not size.gpu:
        return None
    _wait(size)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    _wait(size)
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def _mib(tensor: Tensor) -> float:
    return round(tensor.numel() * tensor.element_size() / 2**20, 1)


def run_part(name: str, size: Size) -> dict[str, Any]:
    """Run a part, write `outputs/bench/gpu-<name>.json` and return its content."""
    result, seconds = _seconds(size, lambda: PARTS[name](size))
    device = torch.cuda.get_device_name() if size.gpu else "processor"
    described = {"name": f"gpu-{name}", "device": device, "torch": torch.__version__, "vocabulary": size.vocabulary}
    described |= {"command": f"make gpu-check ARGS={name}", "seconds": seconds} | result
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"gpu-{name}.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return described


if __name__ == "__main__":
    sys.exit(0 if run_part(sys.argv[1], Size(torch.device("cuda")))["ok"] else 1)
