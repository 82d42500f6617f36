"""`make gpu-check` on a machine without a GPU: what it says, what it imports, and what its parts write when they run on a processor."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.benchmarks import gpu_check, gpu_parts

ROOT = Path(__file__).parents[2]
SMALL = gpu_parts.Size(
    torch.device("cpu"), vocabulary=400, hidden=16, batches=(16,), steps=12, rounds=1, block_rows=64, layers=1
)

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "pydantic_core", "transformers", "tokenizers", "safetensors", "pyarrow", "vllm", "trl",
                                      "accelerate", "datasets", "kfp", "boto3", "mlflow", "jinja2", "psutil"}:
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Blocker())
import ngrpo.mixing.inputs, ngrpo.mixing.records, ngrpo.neighbors.refresh, tests.benchmarks.gpu_parts
print("imported")
"""


def test_without_a_gpu_it_says_so_in_one_line_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "sees no CUDA device: run it where there is an NVIDIA GPU" in line


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_without_its_libraries_it_says_so(monkeypatch, name):
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda asked: None if asked == name else object())
    assert f"has no {name}" in gpu_check.why_not().lower()


def test_an_older_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu126")
    assert gpu_check.why_not() == "torch 2.10.1+cu126 is older than 2.11: install a later one"


def test_an_unknown_part_is_refused_with_the_parts_that_there_are(capsys):
    assert gpu_check.main(["speed", "index"]) == 2
    assert "there is no part speed: choose from kernels" in capsys.readouterr().err


def test_it_takes_at_most_eight_minutes_and_knows_every_part():
    assert set(gpu_check.PARTS) == set(gpu_parts.PARTS)
    assert sum(gpu_check.PARTS.values()) <= 480


@pytest.mark.parametrize("name", gpu_parts.PARTS)
def test_a_part_writes_its_figures(monkeypatch, tmp_path, name):
    monkeypatch.setattr(gpu_parts, "OUTPUT", tmp_path / "bench")
    result = gpu_parts.run_part(name, SMALL)
    assert result["ok"], result
    assert json.loads((tmp_path / "bench" / f"gpu-{name}.json").read_text()) == result
    assert (result["name"], result["device"], result["vocabulary"]) == (f"gpu-{name}", "processor", 400)


@pytest.mark.parametrize("what", ["tokens", "gates"])
def test_a_kernel_that_decides_otherwise_is_found(monkeypatch, what):
    made = gpu_parts._slots

    def other(size, batch, fused, **how):
        slots = made(size, batch, fused, **how)
        if fused and what == "gates":
            slots._tables.rate.fill_(0.5)
        if fused and what == "tokens":
            decide = slots.decide
            slots.decide = lambda *arguments: (decide(*arguments) + 1) % size.vocabulary
        return slots

    monkeypatch.setattr(gpu_parts, "_slots", other)
    assert not gpu_parts.kernels(SMALL)["ok"]


def test_a_refresh_that_finds_other_neighbors_is_found(monkeypatch):
    monkeypatch.setattr(gpu_parts.NeighborIndex, "refresh", lambda index, *_, **__: index)
    monkeypatch.setattr(gpu_parts.torch, "randn_like", lambda matrix: 1e5 * torch.rand_like(matrix))
    assert not gpu_parts.index(SMALL)["ok"]


def test_its_parts_import_nothing_but_torch_and_what_comes_with_it():
    process = subprocess.run(
        [sys.executable, "-c", BLOCKED],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'components'}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout.strip() == "imported", process.stderr


def test_a_part_that_ends_without_a_result_leaves_why(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)  # where there is no such module
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert not gpu_check.run_apart("index")["ok"]
    written = json.loads((tmp_path / "outputs" / "bench" / "gpu-index.json").read_text())
    assert "exit status 1" in written["error"]
    assert "tests" in written["error"]
    monkeypatch.setitem(gpu_check.PARTS, "index", 0.01)
    assert gpu_check.run_apart("index")["error"] == "it took more than 0.01 s"
    assert capsys.readouterr().out.count("index: {") == 2
