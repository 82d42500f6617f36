"""Keys: what changes them, and what does not."""

import os
import shutil

import pytest

from ngrpo.config import MixingConfig, NeighborsConfig
from ngrpo.stages import keys
from ngrpo.stages.declarations import STAGES


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
        "script.py": "",
        "mixing/__init__.py": "from .gate import gate",
        "mixing/gate.py": "from ngrpo.config import STEPS\nfrom ngrpo.config.sections import STEPS\nfrom .. import deep",
        "mixing/unused.py": "",
        "deep.py": "from ngrpo import errors, deeper",
        "deeper/__init__.py": "",
        "stages/__init__.py": "",
        "stages/one.py": (
            "import ngrpo.mixing\n"
            "WORKER = 'ngrpo.named:Worker'\n"
            "def run():\n    from ngrpo import late\n"
            "if __name__ == '__main__':\n    from ngrpo import script\n"
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
        "stages/__init__.py",
        "stages/one.py",
    }
    assert set(keys.source_files("ngrpo.stages.two", package)) == {"__init__.py", "stages/__init__.py", "stages/two.py"}


@pytest.mark.parametrize("file", ["stages/one.py", "mixing/gate.py", "late.py", "named.py", "deeper/__init__.py"])
def test_a_changed_line_changes_the_code_version_of_the_stages_that_reach_it(package, file):
    before = {stage: version(f"ngrpo.stages.{stage}", package) for stage in ("one", "two")}
    with (package / file).open("a") as source:
        source.write("\n# changed\n")
    after = {stage: version(f"ngrpo.stages.{stage}", package) for stage in ("one", "two")}
    assert after["one"] != before["one"]
    assert after["two"] == before["two"]


@pytest.mark.parametrize("file", ["config/sections.py", "errors.py", "unused.py", "mixing/unused.py", "script.py"])
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
    }
    key = keys.stage_key(**parts)
    assert len(key) == 32
    assert keys.stage_key(**parts | {"inputs": {"index": "i0", "dataset": "d0"}}) == key
    changed = [
        {"stage": "two"},
        {"config": keys.config_json(NeighborsConfig(candidates=8))},
        {"code_version": "c1"},
        {"inputs": {"dataset": "d1", "index": "i0"}},
        {"inputs": {"data": "d0", "index": "i0"}},
        {"rerun_token": "again"},
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


def test_the_closure_is_found_from_the_files_not_from_what_is_installed(package, tmp_path):
    copy = tmp_path / "elsewhere" / "ngrpo"
    shutil.copytree(package, copy)
    os.utime(copy / "deep.py", (0, 0))
    assert version("ngrpo.stages.one", copy) == version("ngrpo.stages.one", package)
