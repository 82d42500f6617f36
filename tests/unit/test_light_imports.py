"""Optional libraries that transformers would import but stages do not need are hidden while a stage's module is imported."""

import importlib.util
import subprocess
import sys
import types
from dataclasses import replace

import pytest

from ngrpo.checking import light_imports
from ngrpo.stages.declarations import STAGES, Stage


def test_what_has_no_use_is_hidden_for_a_while(monkeypatch):
    monkeypatch.setattr(light_imports, "_UNUSED", ("colorsys", "zipapp"))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    loaded = types.ModuleType("zipapp")
    monkeypatch.setitem(sys.modules, "zipapp", loaded)
    with light_imports.light_imports():
        assert importlib.util.find_spec("colorsys") is None
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
        assert sys.modules["zipapp"] is loaded, "what is loaded stays"
    assert importlib.import_module("colorsys").rgb_to_hsv
    with pytest.raises(KeyError), light_imports.light_imports():
        raise KeyError
    assert sys.modules["colorsys"] is not None


def test_the_module_of_a_stage_is_imported_so(monkeypatch, tmp_path):
    (tmp_path / "own_stage.py").write_text(
        "from importlib.util import find_spec\nFOUND = find_spec('colorsys')\ndef run(*_): return FOUND\n"
    )
    monkeypatch.setattr(light_imports, "_UNUSED", ("colorsys",))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.delitem(sys.modules, "own_stage", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Stage, "module", "own_stage")
    assert replace(STAGES["prepare_data"]).function()() is None


def test_mlflow_is_imported_ahead_without_what_it_imports_for_others(tmp_path):
    """In a process of its own, as a command is: where MLflow is imported already, nothing is hidden from it.

    A run that only decides then writes a new version's description in that process, so that must work with what was imported.
    """
    model, beside = tmp_path / "model", tmp_path / "beside"
    model.mkdir()
    beside.mkdir()
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    script = (
        "import sys\nfrom pathlib import Path\nfrom ngrpo_kfp.pipelines.local.tracking_ahead import UNUSED_BY_MLFLOW, tracking_ahead\n"
        "tracking_ahead('ngrpo.tracking.promotions').join()\nimport ngrpo.tracking.promotions, ngrpo.tracking.database\n"
        "print([name for name in UNUSED_BY_MLFLOW if name in sys.modules])\n"
        "from ngrpo.tracking.model_flavor import write_flavor\n"
        "write_flavor(*map(Path, sys.argv[1:]), 'model', model_id='m', run_id=None, max_new_tokens=1)"
    )
    done = subprocess.run([sys.executable, "-c", script, model, beside], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert "max_new_tokens" in (beside / "MLmodel").read_text()


def test_what_is_put_off_is_imported_when_something_of_it_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_to_import", raising=False)
    monkeypatch.delitem(sys.modules, "nowhere_at_all", raising=False)
    light_imports.put_off(("slow_to_import", "nowhere_at_all", "types"))
    assert sys.modules["types"] is types, "what is imported stays"
    put_off, nowhere = map(importlib.import_module, ("slow_to_import", "nowhere_at_all"))
    assert "value" not in vars(put_off)
    assert put_off.value == 3
    assert sys.modules["slow_to_import"].value == 3
    assert sys.modules["slow_to_import"] is not put_off
    with pytest.raises(AttributeError):
        _ = put_off.other
    with pytest.raises(ModuleNotFoundError):
        _ = nowhere.value
