"""Computed needs of stages match counts by hand, and requests that are too small are refused before anything starts."""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config

from ngrpo.checking.examination import examine_quickly, require_possible
from ngrpo.config import DirectoryModel, HubModel, InitializedModel, PackagedModel, RegisteredModel, load_config
from ngrpo.config.lora import LoRAConfig
from ngrpo.data.models import materialize
from ngrpo.errors import ConfigError
from ngrpo.sizing import training
from ngrpo.sizing.amounts import GIB, Amount, largest
from ngrpo.sizing.fit import misfits
from ngrpo.sizing.generation import Generation
from ngrpo.sizing.model_shape import ModelShape, _of_settings, model_shape
from ngrpo.sizing.stages import needs_of
from ngrpo.stages.declarations import STAGES
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.submission import require_pods
from ngrpo_kfp.pipelines.planning import needs as planned
from ngrpo_kfp.pipelines.planning.nodes import History
from ngrpo_kfp.pipelines.planning.plan import make_plan
from sizing_table import DOCUMENT, NAMES, ON_GPUS, PRESETS, VLLM, preset, table

ROOT = Path(__file__).parents[2]


def settings(kind, hidden, layers, heads, kv_heads, intermediate, vocabulary, tied, **more):
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        **more,
    }


# --- the shape of a model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("described", "parameters", "billions"),
    [
        # As the hub shows them: numbers in the safetensors files, and what the makers say.
        (settings("qwen2", 1536, 28, 12, 2, 8960, 151936, True), 1_543_714_304, 1.54),
        (settings("qwen2", 1536, 28, 12, 2, 8960, 151936, False), 1_777_088_000, 1.78),
        (settings("qwen2", 3584, 28, 28, 4, 18944, 152064, False), 7_615_616_512, 7.62),
        (settings("llama", 576, 30, 9, 3, 1536, 49152, True), 134_515_008, 0.135),
        (settings("llama", 4096, 32, 32, 8, 14336, 128256, False), 8_030_261_248, 8.03),
        (settings("llama", 2048, 16, 32, 8, 8192, 128256, True), 1_235_814_400, 1.23),
        (settings("qwen3", 1024, 28, 16, 8, 3072, 151936, True, head_dim=128), 596_049_920, 0.6),
        (settings("qwen3", 2048, 28, 16, 8, 6144, 151936, True, head_dim=128), 1_720_574_976, 1.72),
    ],
)
def test_parameters_are_those_that_are_published(described, parameters, billions):
    shape = _of_settings(described)
    assert shape.parameters == parameters
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_library(kind, tied):
    described = settings(kind, 32, 3, 4, 2, 48, 50, tied, head_dim=16, pad_token_id=0)
    if kind in ("llama", "qwen2", "smollm3"):
        del described["head_dim"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**described))
    assert _of_settings(described).parameters == sum(value.numel() for value in model.parameters())


def test_shapes_of_models_that_are_made_here(tmp_path):
    source = InitializedModel(kind="initialized")
    model = AutoModelForCausalLM.from_pretrained(materialize(source, tmp_path / "model"))
    shape = model_shape(source)
    assert shape.parameters == sum(value.numel() for value in model.parameters())
    assert shape.vocabulary == model.config.vocab_size


@pytest.mark.parametrize("name", NAMES)
def test_the_model_of_every_preset_is_known_without_a_network(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert model_shape(preset(name).model.source) is not None


def test_a_directory_is_read(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(settings("anything", 8, 2, 2, 1, 16, 10, True, torch_dtype="bfloat16"))
    )
    source = DirectoryModel(kind="directory", path=str(tmp_path))
    assert model_shape(source) is None, "nobody knows how to count the parameters of this kind"
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.zeros(2)}, tmp_path / "model-2.safetensors")
    shape = model_shape(source)
    assert (shape.parameters, shape.hidden_size, shape.head_size, shape.stored) == (24, 8, 4, 2)
    (tmp_path / "model-1.safetensors").write_bytes(b"no header")
    assert model_shape(source) is None


@pytest.mark.parametrize(
    "content", [None, "{", "[1]", "{}", '{"hidden_size": "8"}', '{"model_type": "mamba", "hidden_size": 8}']
)
def test_what_is_not_known_is_not_made_up(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert model_shape(DirectoryModel(kind="directory", path=str(tmp_path))) is None
    assert model_shape(PackagedModel(kind="packaged", package="some-weights", gguf_file="a.gguf")) is None
    assert model_shape(HubModel(kind="hub", id="nobody/unheard-of", revision="0" * 40)) is None
    registered = RegisteredModel(kind="registered", name="m", version=1, id="s3://b/m", digest="0" * 64)
    assert model_shape(registered) is None


def test_a_copy_of_a_model_of_ours_is_known_by_its_name():
    copy = HubModel(kind="hub", id="s3://bucket/copies/ad9f0ae0864d/DeepSeek-R1-Distill-Qwen-1.5B")
    assert model_shape(copy).parameters == 1_777_088_000


# --- amounts by hand ------------------------------------------------------------------------------------------------------

SMALL = ModelShape(
    hidden_size=10,
    layers=2,
    heads=2,
    kv_heads=1,
    head_size=5,
    intermediate_size=20,
    vocabulary=100,
    parameters=4000,
    stored=2,
)


def by_name(amount):
    return {term.name: term.bytes for term in amount.terms}


def small_training(**changes):
    given = {
        "shape": SMALL,
        "trained": SMALL.parameters,
        "arithmetic": "bfloat16",
        "shards": 4,
        "copies": 0,
        "sequences": 3,
        "tokens": 7,
        "checkpointing": False,
        "reference": True,
        "adam": 8,
        "tiles": 2,
    }
    return training.Training(**(given | changes))


def test_a_sharded_training_by_hand():
    found = small_training()
    # 4000 parameters over 4 processes: 1000 each
    assert by_name(found.model) == {"weights": 4000, "gradients": 4000, "optimizer": 8000, "reference model": 4000}
    # A layer: 10 x 5 x (2 + 1) x 2 = 300 of attention, 3 x 10 x 20 = 600; outside of the two layers are 4000 - 1800.
    # 21 tokens keep 24 x 10 + 8 x 20 + 4 x 2 = 408 bytes and the mask 3 x 49 x 2 = 294; two layers, and the gradients of one.
    # The head: 100 x 10 numbers, its gradient and itself in float32 and once in bfloat16; two tiles of 21 x 100 in float32.
    assert by_name(found.pass_) == {
        "working copy": 2 * (2 * 900 + 2200),
        "activations": 3 * (21 * 408 + 294),
        "LM head": 1000 * (4 + 4 + 2) + 2 * 21 * 100 * 4,
    }


def test_one_process_by_hand():
    found = small_training(arithmetic="float32", shards=1, reference=False, checkpointing=True)
    assert by_name(found.model) == {"weights": 16000, "gradients": 16000, "optimizer": 32000}
    # Nothing is cast; of each layer its inputs, 21 tokens x 10 x 4 bytes, are kept, and one is computed again and has gradients.
    layer = 21 * (40 * 10 + 16 * 20 + 4 * 2) + 4 * 3 * 49
    assert by_name(found.pass_) == {"activations": 2 * 21 * 40 + 2 * layer, "LM head": 4000 + 2 * 21 * 100 * 4}


def test_processes_with_a_copy_each_sum_gradients_through_a_buffer():
    assert by_name(small_training(shards=1, copies=1).model)["gradients"] == 2 * 16000


def test_generation_by_hand():
    config = preset(
        "tiny",
        "rollout.max_tokens=40",
        "rollout.vllm.tensor_parallel_size=2",
        "rollout.vllm.gpu_memory_utilization=0.5",
    )
    found = Generation(config.rollout, SMALL, number=2, rows=6, prompt=10)
    assert SMALL.cached == 2 * 2 * 1 * 5
    assert found.cache == 20 * 2 * 50
    assert by_name(found.of_transformers) == {"keys and values": 6 * 2000 * 1.5, "logits": 6 * 100 * 32}
    assert (found.weights_of_vllm, found.least_of_vllm) == (4000, 4000 + 1000)
    assert found.of_vllm(1).bytes == found.share_of_vllm(1) == GIB / 2


def test_the_published_7b_training_by_hand():
    config = preset("paper-7b", *VLLM)
    shape = model_shape(config.model.source)
    eighth = 7_615_616_512 // 8
    held = by_name(training.policy_optimization(config, shape).model)
    assert held == {
        "weights": 4 * eighth,
        "gradients": 4 * eighth,
        "optimizer": 8 * eighth,
        "reference model": 4 * eighth,
    }
    generation = training.rollouts(config, shape)
    assert (generation.rows, generation.prompt) == (32, 4096)
    # Qwen2.5-7B: 28 layers, 4 heads of 128 for keys and values, in bfloat16: 56 KiB a token
    assert generation.cache == 57_344 * 12_288
    scratch = by_name(needs_of(config, "ngrpo_training").scratch)
    assert scratch["result"] == 2 * 7_615_616_512
    # Weights and moments of the two that are kept, weights of the best.
    assert scratch["checkpoints"] == pytest.approx((2 * 12 + 4) * 7_615_616_512, rel=0.01)


def test_adapters_by_hand():
    assert training.trained_parameters(SMALL, None) == 4000
    # Two layers, rank 3: heads 2 x 5, one for keys and values; 2 (10 + 10) + 2 (10 + 5) + 3 (10 + 20)
    trained = training.trained_parameters(SMALL, LoRAConfig(rank=3))
    assert trained == 3 * 2 * (40 + 30 + 90)
    found = small_training(trained=trained, shards=1, reference=False)
    assert by_name(found.model) == {"weights": 16000, "adapters": 3840, "gradients": 3840, "optimizer": 7680}
    config = preset("paper-7b", *VLLM, 'training.lora={"rank": 16}')
    assert "reference model" not in by_name(
        training.policy_optimization(config, model_shape(config.model.source)).model
    )
    assert needs_of(config, "ngrpo_training").scratch.bytes < 60 * GIB


def test_the_largest_phase_counts():
    small, large = Amount.of(a=1.0), Amount.of(b=2.0, c=0.0)
    assert largest(small, large) is large
    assert [term.name for term in (small + large).terms] == ["a", "b"]


# --- activations: what autograd saves ------------------------------------------------------------------------------------


def saved_bytes(config, layers, arithmetic, checkpointing):
    """Return the bytes of what the layers of a model keep for the backward pass, its weights and their copies left out."""
    config.num_hidden_layers = layers
    model = AutoModelForCausalLM.from_config(config).train()
    if arithmetic == "bfloat16":
        model = model.bfloat16()
    if checkpointing:
        model.gradient_checkpointing_enable()
    own, kept = {value.untyped_storage().data_ptr() for value in model.parameters()}, {}
    copies = {tuple(value.shape[::-1]) for value in model.parameters()} | {
        tuple(value.shape) for value in model.parameters()
    }

    def keep(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in own and tuple(value.shape) not in copies:
            kept[storage.data_ptr()] = (storage.nbytes(), value)
        return value

    mask = torch.ones(2, 96, dtype=torch.long)
    mask[0, :5] = 0
    cast = torch.autocast("cpu", dtype=torch.bfloat16) if arithmetic == "autocast" else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), cast:
        model.model(input_ids=torch.ones(2, 96, dtype=torch.long), attention_mask=mask, use_cache=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])
def test_activations_are_those_that_autograd_saves(kind, arithmetic, checkpointing):
    numbers = {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 320,
        "vocab_size": 16,
    }
    config = kind(**numbers, max_position_embeddings=96)
    saved = (saved_bytes(config, 4, arithmetic, checkpointing) - saved_bytes(config, 2, arithmetic, checkpointing)) / 2
    shape = ModelShape(128, 1, 4, 2, 32, 320, 16, 1, 4)
    one, two = (
        small_training(
            shape=ModelShape(**{**shape.__dict__, "layers": layers}),
            arithmetic=arithmetic,
            sequences=2,
            tokens=96,
            checkpointing=checkpointing,
        )
        for layers in (1, 2)
    )
    computed = by_name(two.pass_)["activations"] - by_name(one.pass_)["activations"]
    assert saved <= computed * 1.01
    assert computed <= saved * (1.02 if not checkpointing else 2.5)


# --- presets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_preset_asks_for_less_than_it_needs(name):
    config = preset(name, *(VLLM if name in ON_GPUS else ()))
    assert [misfit.line for misfit in misfits(config, STAGES)] == []
    for stage in STAGES:
        assert needs_of(config, stage).memory.bytes > 0


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_preset_still_fits_with_the_example_cluster(name):
    config = load_config(PRESETS / f"{name}.toml", VLLM, PRESETS.parent / "cluster.example.toml")
    assert [misfit.line for misfit in misfits(config, STAGES)] == []


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [("paper-1.5b", False), ("authors-release-1.5b", True), ("paper-7b", True), ("authors-release-7b", True)],
)
def test_activations_are_computed_again_where_they_would_not_fit(name, checkpointing):
    assert preset(name).training.gradient_checkpointing is checkpointing
    kept = preset(name, *VLLM, "training.gradient_checkpointing=false")
    needed = needs_of(kept, "ngrpo_training").gpu.gib
    assert needed > 80 if checkpointing else needed < 0.8 * 80


# --- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "setting", "cure"),
    [
        (
            ["resources.ngrpo_training.gpu_memory_gib=48"],
            "resources.ngrpo_training.gpu_memory_gib=48: up to ",
            "more GPUs (",
        ),
        (
            ["training.micro_batch_size=4", "training.gradient_checkpointing=false"],
            "resources.ngrpo_training.gpu_memory_gib=80: up to ",
            "a smaller training.micro_batch_size, training.gradient_checkpointing=true",
        ),
        (
            ["evaluation.engine=transformers"],
            "resources.benchmark_evaluation.gpu_memory_gib=80: up to ",
            "evaluation.engine='vllm', a smaller evaluation.batch_size",
        ),
        (
            ["rollout.vllm.gpu_memory_utilization=0.05"],
            "rollout.vllm.gpu_memory_utilization=0.05: 4.0 of 80 GiB cannot hold a model of 14.2 GiB",
            "raise it, or rollout.vllm.tensor_parallel_size",
        ),
    ],
)
def test_a_gpu_that_is_too_small_is_refused_before_anything_starts(overrides, setting, cure):
    config = preset("paper-7b", *VLLM, *overrides)
    with pytest.raises(ConfigError) as refused:
        require_possible(config)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(setting)
    assert cure in line


def test_pods_that_are_too_small_are_refused_on_a_cluster_and_said_elsewhere():
    config = preset(
        "paper-7b",
        *VLLM,
        "resources.ngrpo_training.scratch_gib=50",
        "resources.neighbor_index.memory_gib=2",
        "cluster.scratch_gib=20",
    )
    require_possible(config)
    warned = [finding for finding in examine_quickly(config).findings if finding.level == "warning"]
    assert {finding.subject for finding in warned} == {
        "resources.ngrpo_training.scratch_gib",
        "resources.neighbor_index.memory_gib",
        "cluster.scratch_gib",
    }
    images = Images(ROOT / "tests" / "pipeline" / "golden" / "images.lock")
    with pytest.raises(ConfigError) as refused:
        require_pods(config, images, ["ngrpo_training", "neighbor_index", "benchmark_evaluation"])
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert re.match(
        r"resources.ngrpo_training.scratch_gib=50: up to \d+ GiB of scratch in ngrpo_training are needed \(checkp",
        lines[0],
    )
    assert re.search(r"set resources.ngrpo_training.scratch_gib to \d{3} or more", lines[0])
    assert lines[1].startswith("resources.neighbor_index.memory_gib=2: up to ")
    assert lines[2].startswith("cluster.scratch_gib=20: up to ")
    assert require_pods(config, images, ["prepare_data"]) is None


def test_nothing_is_refused_of_a_model_that_is_not_known():
    config = preset("paper-7b", "model.source.id=nobody/unheard-of", "resources.ngrpo_training.gpu_memory_gib=1")
    assert misfits(config, STAGES) == []
    (said,) = [finding for finding in examine_quickly(config).findings if finding.subject == "resources"]
    assert "not known here" in said.found


def test_an_optimizer_of_ones_own_counts_for_nothing():
    """What it keeps is not known: a run must not be refused for what it may not need."""
    shape = model_shape(preset("paper-7b").model.source)
    stock, own = (
        training.policy_optimization(preset("paper-7b", *more), shape).adam
        for more in ([], ['training.trl={"optim": "adafactor"}'])
    )
    assert (stock, own) == (8, 0)


# --- what is shown ----------------------------------------------------------------------------------------------------------


def plan_of(config):
    return make_plan(
        config,
        run="r",
        store=None,
        rerun_tokens={},
        history=History(),
        versions=lambda stage, names: dict.fromkeys(names, "1"),
    )


def test_the_plan_shows_what_is_needed_of_what_is_asked_for():
    config = preset("paper-7b", *VLLM)
    console = Console(record=True, width=1000, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    planned.show_needs(config, plan_of(config), console)
    text = console.export_text()
    needs = needs_of(config, "ngrpo_training")
    row = next(line for line in text.splitlines() if "ngrpo_training" in line and "8 x 80 GiB" in line)
    assert f" {needs.gpu.gib} " in row
    assert f"{needs.memory.gib} of 512" in row
    assert f"{needs.scratch.gib} of {config.resources['ngrpo_training'].scratch_gib}" in row
    for term in (*needs.gpu.terms, *needs.memory.terms, *needs.scratch.terms):
        assert f"{term.name} {term.bytes / GIB:.1f}" in text
    assert re.search(r"neighbor_index .*time: about 1 min \(the build, by its benchmark, 16 cores\)", text)
    said = "1,321.2 million tokens in rollouts, and 21 times 32 answers to each problem of aime24"
    assert re.search(rf"time: about \d+ h \(computed for A100s, not measured, .*; generates at most {said}\)", text)


def test_hours_of_gpus_by_hand():
    config = preset("paper-1.5b")
    shape = model_shape(config.model.source)
    training = needs_of(config, "ngrpo_training").duration
    batches, rollouts, length, rows = 630, 256, 8192, 32
    # A step of one of 8 engines reads 2 bytes of each parameter, and of 28 layers keys and values of 2 heads of 128.
    read = 2 * shape.parameters + rows * length / 2 * 2 * 2 * 28 * 2 * 128
    measured = 21 * 32 * 30 / 8 / rows  # batches more: 30 problems of AIME24, 32 answers each
    generating = (batches + measured) * length * read / (0.6 * 2.04e12)
    # Forward and backward, the reference and, since a batch makes four updates, the old policy.
    token = 2 * shape.parameters + 4 * 28 * 12 * 128 * length / 2
    learning = batches * rollouts * length * 5 * token / (8 * 0.4 * 312e12)
    assert training.computed
    assert training.seconds == pytest.approx(generating + learning, rel=1e-6)
    longer = needs_of(preset("paper-1.5b", "evaluation.samples=64"), "benchmark_evaluation").duration
    assert longer.seconds == pytest.approx(2 * needs_of(config, "benchmark_evaluation").duration.seconds)
    assert needs_of(preset("tiny"), "ngrpo_training").duration.seconds is None
    assert needs_of(preset("paper-1.5b", "rollout.engine=transformers"), "ngrpo_training").duration.seconds is None


def test_the_page_explains_every_term():
    first_cells = re.findall(r"^\| ([^|]+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    explained = {name for cell in first_cells for name in re.findall("`([^`]+)`", cell)}
    names = set()
    for name in NAMES:
        for more in ((), (*VLLM, "training.index_refresh=every_batch"), ("warm_start.steps=0",)):
            config = preset(name, *more)
            for stage in STAGES:
                needs = needs_of(config, stage)
                amounts = [amount for amount in (needs.gpu, needs.memory, needs.scratch) if amount is not None]
                names |= {term.name for amount in amounts for term in amount.terms}
    assert names - explained == set()


def test_the_page_has_the_table_of_every_preset():
    assert table() in DOCUMENT.read_text(encoding="utf-8"), "python tests/sizing_table.py writes it anew"


def driver(tmp_path, monkeypatch, answer, code=0):
    """Put a driver's program on the path that says this, and a device."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '{answer}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    devices = tmp_path / "dev"
    devices.mkdir()
    for number in range(8):
        (devices / f"nvidia{number}").touch()
    return devices


def test_a_gpu_of_this_machine_that_is_too_small_is_named(tmp_path, monkeypatch):
    devices = driver(tmp_path, monkeypatch, "81559\\n" * 7 + "24576\\n")
    assert planned.gpu_memories() == [81559] * 7 + [24576]
    config = preset("paper-7b", *VLLM)
    with pytest.raises(
        ConfigError, match=r"^ngrpo_training: up to \d+ GiB of each GPU are needed .* has 24.0; more GPUs"
    ) as refused:
        planned.require_gpus(config, plan_of(config), devices)
    assert len(str(refused.value).splitlines()) == 1
    unchecked = ("resources.ngrpo_training.gpu_memory_gib=0", "resources.benchmark_evaluation.gpu_memory_gib=0")
    free = preset("paper-7b", *VLLM, *unchecked)
    planned.require_gpus(free, plan_of(free), devices)


@pytest.mark.parametrize(("answer", "code"), [("81559\\n", 0), ("No devices were found\\n", 6), ("[N/A]\\n", 0)])
def test_gpus_that_are_large_enough_or_not_known_are_no_reason(tmp_path, monkeypatch, answer, code):
    config = preset("paper-7b", *VLLM)
    planned.require_gpus(config, plan_of(config), driver(tmp_path, monkeypatch, answer, code))
