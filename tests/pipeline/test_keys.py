"""Keys: what changes them, and what does not."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import keys_table
from ngrpo.config import MixingConfig, NeighborsConfig
from ngrpo.stages import keys
from ngrpo.stages.declarations import STAGES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def package(tmp_path):
    """A small package with every way of reaching a module."""
    files = {
        "__init__.py": "",
        "config/__init__.py": "from ngrpo.config.sections import STEPS",
        "config/sections.py": "STEPS = 1",
        "errors.py": "",
        "unused.py": "",
        "late.py": "",
        "named.py": "class Worker: ...",
        "pathed/__init__.py": "",
        "pathed/worker.py": "from ngrpo.pathed import helper\nclass Worker: ...",
        "pathed/helper.py": "",
        "report.py": "import ngrpo.drawn",
        "drawn.py": "",
        "mixing/__init__.py": "from .gate import gate",
        "mixing/gate.py": "from ngrpo.config import STEPS\nfrom ngrpo.config.sections import STEPS\nfrom .. import deep",
        "mixing/unused.py": "",
        "deep.py": "from ngrpo import errors, deeper",
        "deeper/__init__.py": "",
        "stages/__init__.py": "",
        "stages/one.py": (
            "import ngrpo.mixing\n"
            "WORKER = 'ngrpo.named:Worker'\n"
            "OTHER = 'ngrpo.pathed.worker.Worker.start'\n"
            "def run():\n    from ngrpo import late, report\n"
        ),
        "stages/two.py": "import json",
    }
    root = tmp_path / "ngrpo"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def version(module, root):
    keys.source_files.cache_clear()
    keys._scan.cache_clear()
    keys._path.cache_clear()
    return keys.code_version(module, root)


def test_source_closure_holds_what_a_stage_can_reach_and_nothing_else(package):
    assert set(keys.source_files("ngrpo.stages.one", package)) == {
        "__init__.py",
        "deep.py",
        "deeper/__init__.py",
        "late.py",
        "mixing/__init__.py",
        "mixing/gate.py",
        "named.py",
        "pathed/__init__.py",
        "pathed/helper.py",
        "pathed/worker.py",
        "stages/__init__.py",
        "stages/one.py",
    }
    assert set(keys.source_files("ngrpo.stages.two", package)) == {"__init__.py", "stages/__init__.py", "stages/two.py"}


@pytest.mark.parametrize(
    "file",
    [
        "stages/one.py",
        "mixing/gate.py",
        "late.py",
        "named.py",
        "pathed/worker.py",
        "pathed/helper.py",
        "deeper/__init__.py",
    ],
)
def test_a_changed_line_changes_the_code_version_of_the_stages_that_reach_it(package, file):
    before = {stage: version(f"ngrpo.stages.{stage}", package) for stage in ("one", "two")}
    with (package / file).open("a") as source:
        source.write("\n# changed\n")
    after = {stage: version(f"ngrpo.stages.{stage}", package) for stage in ("one", "two")}
    assert after["one"] != before["one"]
    assert after["two"] == before["two"]


@pytest.mark.parametrize(
    "file", ["config/sections.py", "errors.py", "unused.py", "mixing/unused.py", "report.py", "drawn.py"]
)
def test_source_that_no_result_depends_on_does_not_change_it(package, file):
    before = version("ngrpo.stages.one", package)
    (package / file).write_text("CHANGED = True")
    assert version("ngrpo.stages.one", package) == before


def test_a_module_that_is_not_there_is_an_error(package):
    with pytest.raises(ModuleNotFoundError, match=r"ngrpo\.stages\.three"):
        keys.code_version("ngrpo.stages.three", package)


def test_a_default_of_the_configuration_is_in_the_key_though_its_source_is_not():
    """The source of `ngrpo.config` may change freely as long as the values that a stage gets stay the same."""

    class Changed(MixingConfig):
        rate: float = 0.2

    assert keys.config_json(MixingConfig()) != keys.config_json(Changed())
    assert keys.config_json(MixingConfig()) == keys.config_json(MixingConfig(rate=0.1, k=3))


def test_key_depends_on_each_of_its_parts_and_on_no_order():
    parts = {
        "stage": "one",
        "config": keys.config_json(NeighborsConfig()),
        "code_version": "c0",
        "inputs": {"dataset": "d0", "index": "i0"},
        "rerun_token": None,
        "libraries": {"torch": "2.13.0", "trl": "1.16.0"},
        "content": {"data.train": "t0"},
    }
    key = keys.stage_key(**parts)
    assert len(key) == 32
    assert keys.stage_key(**parts | {"inputs": {"index": "i0", "dataset": "d0"}}) == key
    assert keys.stage_key(**parts | {"libraries": {"trl": "1.16.0", "torch": "2.13.0"}}) == key
    changed = [
        {"stage": "two"},
        {"config": keys.config_json(NeighborsConfig(candidates=8))},
        {"code_version": "c1"},
        {"inputs": {"dataset": "d1", "index": "i0"}},
        {"inputs": {"data": "d0", "index": "i0"}},
        {"rerun_token": "again"},
        {"libraries": {"torch": "2.13.1", "trl": "1.16.0"}},
        {"libraries": {"torch": "2.13.0"}},
        {"content": {"data.train": "t1"}},
        {"content": {"data.warm_start": "t0"}},
        {"content": {}},
    ]
    assert len({key, *(keys.stage_key(**parts | change) for change in changed)}) == 1 + len(changed)


@pytest.mark.parametrize(
    ("stage", "reached", "not_reached"),
    [
        ("prepare_data", "data/arithmetic.py", "training/ngrpo_trainer.py"),
        ("neighbor_index", "neighbors/search.py", "mixing/mixer.py"),
        ("ngrpo_training", "mixing/mixer.py", "evaluation/statistics.py"),
        ("benchmark_evaluation", "grading/worker.py", "training/ngrpo_trainer.py"),
        ("model_promotion", "evaluation/statistics.py", "rollout/engine.py"),
    ],
)
def test_real_stages_reach_what_they_work_with_and_not_what_others_do(stage, reached, not_reached):
    files = keys.source_files(STAGES[stage].module)
    assert (keys.PACKAGE / not_reached).exists()
    assert reached in files
    assert not_reached not in files
    assert not {file for file in files if file.startswith("config/")}
    assert not {"errors.py", "stages/execution.py", "stages/declarations.py"} & set(files)


@pytest.mark.parametrize("name", ["worker", "runner_v1", "runner_v2", "scheduler", "rows", "compatibility", "engine"])
def test_what_vllm_loads_by_name_decides_training_evaluation_and_samples(name):
    file = f"rollout/vllm/{name}.py"
    assert keys_table.moved_by(file) == ("ngrpo_training", "benchmark_evaluation")
    assert file in keys.source_files("ngrpo.rollout.configured_engine"), "of which samples know the code version"


@pytest.mark.parametrize(
    "file",
    [
        "storage/objects.py",
        "report/rollout_log.py",
        "report/progress_lines.py",
        "report/model_card.py",
        "environment.py",
    ],
)
def test_what_only_moves_or_says_things_moves_no_key(file):
    assert (keys.PACKAGE / file).exists()
    assert keys_table.moved_by(file) == ()


def test_the_documentation_says_which_file_moves_which_key():
    assert keys_table.table() in keys_table.DOCUMENT.read_text(), "python tests/keys_table.py writes it anew"


def test_the_digests_that_are_in_results_are_no_mere_transfer():
    assert "benchmark_evaluation" in keys_table.moved_by("storage/digest.py")


def test_every_transparent_module_is_there_and_says_why():
    for module, reason in keys.TRANSPARENT.items():
        assert keys._path(module, keys.PACKAGE) is not None, module
        assert len(reason) > 20


def test_the_closure_is_found_from_the_files_not_from_what_is_installed(package, tmp_path):
    copy = tmp_path / "elsewhere" / "ngrpo"
    shutil.copytree(package, copy)
    os.utime(copy / "deep.py", (0, 0))
    assert version("ngrpo.stages.one", copy) == version("ngrpo.stages.one", package)


def test_two_clones_and_a_wheel_have_the_same_keys(tmp_path):
    """The wheel is built from one clone and unpacked; nothing of it is installed."""
    ours = [
        path
        for path in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
        if (ROOT / path).is_file()
    ]
    clones = [tmp_path / "one", tmp_path / "elsewhere" / "two"]
    for clone in clones:
        for path in ours:
            if path.startswith(("components/", "pipelines/")) or "/" not in path:
                (clone / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, clone / path)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=clones[1], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "wheel")
    roots = [*(clone / "components" / "ngrpo" for clone in clones), tmp_path / "wheel" / "ngrpo"]
    for stage in STAGES.values():
        assert {keys.code_version(stage.module, root) for root in roots} == {keys.code_version(stage.module)}


@pytest.mark.parametrize("damage", [None, "{", '{"reader": "another version", "names": {}}'])
def test_what_sources_mention_is_kept_by_their_content(package, tmp_path, monkeypatch, damage):
    file = tmp_path / "mentions.json"
    monkeypatch.setattr(keys, "_mentioned", {})
    with keys.mentions_kept(file):
        expected = version("ngrpo.stages.one", package)
    if damage is not None:
        file.write_text(damage)
    monkeypatch.setattr(keys, "_mentioned", {})
    read = []
    mentions = keys._mentions
    monkeypatch.setattr(keys, "_mentions", lambda node, name: read.append(name) or mentions(node, name))
    with keys.mentions_kept(file):
        assert version("ngrpo.stages.one", package) == expected
    assert bool(read) == (damage is not None), "sound and of this version: no source is taken apart"
    (package / "stages" / "one.py").write_text("import json\n")
    with keys.mentions_kept(file):
        assert version("ngrpo.stages.one", package) != expected
    assert read
