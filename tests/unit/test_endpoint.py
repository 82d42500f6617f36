"""An evaluation of a served model: same answers as from the local engine, or refused with the reason."""

import shutil
import socket
from contextlib import closing

import pytest

from endpoint_stub import EndpointStub, serving
from ngrpo.checking.examination import examine_quickly
from ngrpo.config import BenchmarkEvaluationConfig, EndpointConfig, EvaluationConfig, load_config
from ngrpo.errors import ConfigError, EngineError
from ngrpo.evaluation import endpoint_client
from ngrpo.evaluation.benchmark import Benchmark
from ngrpo.evaluation.configured_sampler import start_sampler
from ngrpo.evaluation.endpoint_client import TOKEN
from ngrpo.evaluation.endpoint_names import digest_name
from ngrpo.evaluation.protocol import benchmark_protocol
from ngrpo.evaluation.samples import parts
from ngrpo.rollout.seeds import request_seed
from ngrpo.stages import benchmark_evaluation
from ngrpo.stages.context import Context
from ngrpo.storage.digest import model_digest
from ngrpo_kfp.pipelines.cli.options import PRESETS
from tiny import save_tiny_model

GREEDY = {"top_p": 1e-6, "temperature": 0.6}
PROBLEMS = [f"{first} + {second} =" for first in (1, 7, 23) for second in (2, 31)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def stub(directory, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    with serving(EndpointStub(directory, "tiny")) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(endpoint_client, "_RETRIES", endpoint_client._RETRIES.new(backoff_factor=0))


def settings(url: str | None = None, model: str | None = None, **evaluation) -> BenchmarkEvaluationConfig:
    endpoint = {} if url is None else {"endpoint": {"url": url} | ({} if model is None else {"model": model})}
    defaults = {"samples": 2, "pass_at": (1,), "max_tokens": 10, "batch_size": 4, "bootstrap_draws": 100}
    return BenchmarkEvaluationConfig.model_validate(
        {
            "seed": 7,
            "model": {"source": {"kind": "initialized"}},
            "neighbors": {"candidates": 4},
            "warm_start": {"steps": 0},
            "evaluation": defaults | GREEDY | endpoint | evaluation,
        }
    )


def sums() -> Benchmark:
    prompts = [[{"role": "user", "content": problem}] for problem in PROBLEMS]
    return Benchmark("sums", [f"p{number}" for number in range(len(PROBLEMS))], prompts, ["1"] * len(PROBLEMS))


def sampled(config: BenchmarkEvaluationConfig, directory):
    """Every sample of the benchmark, through the interleaved parts of the stage."""
    benchmark = sums()
    requests = [(problem, sample) for problem in range(len(PROBLEMS)) for sample in range(2)]
    waiting = parts(0, requests, 2)
    made = dict(
        (part.requests[0], table.to_pylist())
        for part, table in benchmark_evaluation._sampled_here(
            config, {"model": str(directory)}, [benchmark], waiting, tuple, ahead=8
        )
    )
    return [row for key in sorted(made) for row in made[key]]


def refused(config: BenchmarkEvaluationConfig, directory) -> str:
    with pytest.raises((ConfigError, EngineError)) as caught:
        sampled(config, directory)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert ";" in said, "no cure"
    return said


# --- as the engine here -------------------------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_the_engine_here_to_the_token(directory, stub):
    here, there = sampled(settings(), directory), sampled(settings(stub.url), directory)
    assert len({row["text"] for row in here}) > 1
    assert there == here


def test_an_endpoint_is_asked_what_an_engine_here_is_asked(directory, stub):
    config = settings(stub.url, temperature=0.8, top_p=0.9)
    benchmark = sums()
    with closing((sampler := start_sampler(config, directory, benchmark.prompts)).engine):
        probes = len(stub.requests)
        sampler.generate(benchmark, [(0, 0), (0, 1), (3, 0)])
    prompts = sampler.tokenizer.apply_chat_template(
        benchmark.prompts, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    asked = {request["seed"]: request for request in stub.requests[probes:]}
    assert asked.keys() == {request_seed(7, "sums", *sample) for sample in (("p0", 0), ("p0", 1), ("p3", 0))}
    request = asked[request_seed(7, "sums", "p3", 0)]
    assert request["prompt"] == prompts[3]
    wanted = {"model": "tiny", "temperature": 0.8, "top_p": 0.9, "max_tokens": 10, "n": 1, "stop_token_ids": [1]}
    assert wanted.items() <= request.items()
    # What the server would take from the model's generation_config.json.
    assert {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}.items() <= request.items()
    assert {"presence_penalty": 0.0, "frequency_penalty": 0.0, "return_token_ids": True}.items() <= request.items()


def test_no_more_requests_at_once_than_the_batch_has(directory, stub, monkeypatch):
    import threading

    under_way, most, lock, complete = 0, 0, threading.Lock(), stub.complete

    def counted(request):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        try:
            return complete(request)
        finally:
            with lock:
                under_way -= 1

    monkeypatch.setattr(stub, "complete", counted)
    sampled(settings(stub.url, batch_size=3), directory)
    assert 1 < most <= 3


# --- which model --------------------------------------------------------------------------------------------------------


def test_a_model_that_was_trained_a_little_further_is_refused(tmp_path, directory, stub):
    import torch
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(directory, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    torch.manual_seed(0)
    weights = {name: value + 0.01 * torch.randn_like(value) for name, value in weights.items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    said = refused(settings(stub.url), other)
    assert "tiny is another model than" in said
    assert "serve the files that are evaluated" in said
    assert all("prompt_logprobs" in request for request in stub.requests), "only the probes were sent"


def test_a_name_with_the_digest_of_other_files_is_refused(tmp_path, directory, capsys):
    name = digest_name(model_digest(directory))
    with serving(EndpointStub(directory, "champion", name)) as stub:
        sampled(settings(stub.url), directory)
        assert "is the evaluated model, according to its digest and " in capsys.readouterr().err
        other = shutil.copytree(directory, tmp_path / "other")
        (other / "generation_config.json").write_text('{"eos_token_id": 1, "top_k": 3}')
        assert f"serves another model ({name}, not ngrpo-model-" in refused(settings(stub.url), other)


def test_which_name_is_asked_for(directory, stub):
    assert "evaluation.endpoint.model='b'" in refused(settings(stub.url, "b"), directory)
    stub.served.append({"id": "b", "root": "/elsewhere", "max_model_len": 128})
    assert "serves tiny, b; set evaluation.endpoint.model" in refused(settings(stub.url), directory)
    sampled(settings(stub.url, "tiny"), directory)
    stub.served.clear()
    assert "serves no model" in refused(settings(stub.url), directory)


def test_a_server_without_logprobs_of_prompts_proves_nothing(directory, stub):
    stub.change = {"prompt_logprobs": None}
    assert "which are needed to identify the model" in refused(settings(stub.url), directory)


# --- what goes wrong ----------------------------------------------------------------------------------------------------


def test_a_dead_endpoint(directory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        said = refused(settings(url), directory)
    assert said.startswith(f"evaluation.endpoint.url={url}: cannot be reached (")
    assert said.endswith("start the server, or correct the address")


def test_an_endpoint_that_dies_in_between(directory, stub):
    sampler = start_sampler(settings(stub.url), directory, sums().prompts)
    stub.faults = [(503, "")] * 1000
    with (
        closing(sampler.engine),
        pytest.raises(EngineError, match=r"HTTP 503: no reason given; look at the server's log"),
    ):
        sampler.generate(sums(), [(0, 0)])
    assert len(stub.requests) <= 3 + 7, "tries are bounded"


def test_what_passes_by_itself_is_tried_again(directory, stub):
    sampler = start_sampler(settings(stub.url), directory, sums().prompts)
    stub.faults = [(503, "starting"), (429, "busy"), (502, "proxy")]
    with closing(sampler.engine):
        assert sampler.generate(sums(), [(0, 0)]).num_rows == 1
    first, *again = stub.requests[-4:]
    assert again == [first] * 3, "with the same seed it is the same sample"


@pytest.mark.parametrize("token", [None, "wrong-token-of-mine"])
def test_a_token_that_is_refused_is_not_shown(directory, stub, monkeypatch, token, capfd):
    stub.token = "the-token-of-the-server"
    if token is not None:
        monkeypatch.setenv(TOKEN, token)
    said = refused(settings(stub.url), directory)
    assert f"{'requires a token' if token is None else 'refuses the token in NGRPO_ENDPOINT_TOKEN'} (HTTP 401)" in said
    monkeypatch.setenv(TOKEN, "the-token-of-the-server")
    sampled(settings(stub.url), directory)
    shown = said + "".join(capfd.readouterr())
    assert "token-of" not in shown


def test_a_server_cannot_make_us_say_the_token(directory, stub, monkeypatch):
    monkeypatch.setenv(TOKEN, "the-token-of-the-server")
    sampler = start_sampler(settings(stub.url), directory, sums().prompts)
    stub.faults = [(400, '{"error": {"message": "no: the-token-of-the-server\\n\\u001b[31m"}}')]
    with closing(sampler.engine), pytest.raises(ConfigError, match=r"refuses a request: no: \*\*\* \[31m; ") as caught:
        sampler.generate(sums(), [(0, 0)])
    assert "token-of" not in str(caught.value)


def test_too_little_room(directory, stub):
    stub.served[0]["max_model_len"] = stub.room = 12
    said = refused(settings(stub.url), directory)
    assert "has room for 12 tokens, but a prompt and its response may take" in said
    assert "--max-model-len" in said


def test_a_response_that_was_cut_off(directory, stub):
    del stub.served[0]["max_model_len"]
    stub.room = 12
    assert "a response was cut off after" in refused(settings(stub.url), directory)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids": None}, "not a response of vLLM's completions API (choices.0.token_ids:"),
        ({"finish_reason": "abort"}, "(choices.0.finish_reason:"),
        ({"prompt_token_ids": [2, 5]}, "changed a prompt before continuing it"),
        ({"token_ids": [5, 5000], "finish_reason": "stop"}, "cannot have generated"),
        ({"token_ids": [5] * 11}, "a response of 11 tokens that the model, with a vocabulary of"),
        ({"token_ids": [], "finish_reason": "stop"}, "a response of 0 tokens"),
    ],
)
def test_answers_that_are_none(directory, stub, change, said):
    sampler = start_sampler(settings(stub.url), directory, sums().prompts)
    stub.change = change
    with closing(sampler.engine), pytest.raises(EngineError) as caught:
        sampler.generate(sums(), [(0, 0)])
    assert said in str(caught.value)


@pytest.mark.parametrize("body", ["<html>hello</html>", "[]", '{"choices": []}'])
def test_something_else_that_answers(directory, stub, body):
    sampler = start_sampler(settings(stub.url), directory, sums().prompts)
    stub.faults = [(200, body)]
    with closing(sampler.engine), pytest.raises(EngineError, match=r"use a (vLLM server|server with vLLM)"):
        sampler.generate(sums(), [(0, 0)])


def test_an_address_without_an_api(directory, stub):
    said = refused(settings(stub.url.replace("/v1", "/v2")), directory)
    assert "no OpenAI API there (HTTP 404" in said


# --- settings and keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://models.example.com/openai/v1", "https://models.example.com/openai/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_addresses(url, read):
    assert EndpointConfig(url=url).url == read


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://host/v1",
        "http://",
        "http://host:99999/v1",
        "http://user:secret@host/v1",
        "http://h/?key=1",
    ],
)
def test_what_is_no_address(url):
    with pytest.raises(ValueError, match=r"write http://HOST:PORT/v1|at least 1 character"):
        EndpointConfig(url=url)


def test_what_a_served_model_cannot_do_is_refused():
    endpoint = {"url": "http://127.0.0.1:8000"}
    with pytest.raises(ValueError, match="a served model does not mix"):
        EvaluationConfig.model_validate({"endpoint": endpoint, "mixing": {}})
    with pytest.raises(ValueError, match=r"temperature=0.005 with endpoint: vLLM's server takes 0.01"):
        EvaluationConfig.model_validate({"endpoint": endpoint, "temperature": 0.005})


def test_an_endpoint_is_in_the_key_and_not_in_the_protocol():
    without, served = settings(), settings("http://127.0.0.1:8000")
    assert "endpoint" not in without.model_dump(mode="json")["evaluation"], "keys of other evaluations stay"
    assert served.model_dump(mode="json") != without.model_dump(mode="json")
    protocols = [benchmark_protocol(sums(), PROBLEMS, config.evaluation, None) for config in (without, served)]
    assert protocols[0] == protocols[1], "the two are comparable"
    keys = [benchmark_evaluation._samples_key(config, "weights", "prompts") for config in (without, served)]
    assert keys[0] != keys[1]


def test_what_an_endpoint_answered_is_not_kept_for_later(tmp_path):
    context = Context(work=tmp_path, store="s3://bucket/prefix")
    store = benchmark_evaluation._sample_store(settings("http://127.0.0.1:8000"), context)
    store.put_bytes(b"", f"{'0' * 64}.parquet")
    assert (tmp_path / "samples" / f"{'0' * 64}.parquet").exists()


def test_a_run_cannot_be_measured_through_an_endpoint():
    config = load_config(PRESETS / "tiny.toml", ["evaluation.endpoint.url=http://127.0.0.1:8000"])
    (error,) = examine_quickly(config).errors
    assert "`ngrpo evaluate MODEL --endpoint URL`" in error.line
