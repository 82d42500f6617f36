"""The OpenAI completions API of vLLM, as far as an evaluation needs it (`vllm.entrypoints.openai.completion.protocol`)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from urllib3 import BaseHTTPResponse, PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError, MaxRetryError, ReadTimeoutError

from ngrpo.config.endpoint import EndpointConfig
from ngrpo.environment import redacted
from ngrpo.errors import ConfigError, EngineError

TOKEN = "NGRPO_ENDPOINT_TOKEN"
"""Environment variable with the token of the endpoint, if it requires one; the token is stored nowhere else."""
_SECONDS_TO_CONNECT = 10.0
_SECONDS_TO_LIST = 30.0
_RETRIES = Retry(
    total=6,
    redirect=0,
    allowed_methods=None,  # POST too: a request with a seed gets the same answer again
    status_forcelist=(429, 502, 503, 504),
    backoff_factor=0.5,
    backoff_max=10,
    raise_on_status=False,
    retry_after_max=30,
)
"""Retries for half a minute, or as the server says in `Retry-After`, at most 30 seconds each time."""
_LONGEST_SAID = 200


class ServedModel(BaseModel):
    """A name under which an endpoint serves a model."""

    id: str
    root: str | None = None
    max_model_len: int | None = None
    """Longest prompt and response together, in tokens; None if the server does not state it."""


class _Logprob(BaseModel):
    logprob: float


class _Logprobs(BaseModel):
    token_logprobs: list[float | None]


class Choice(BaseModel):
    """A response."""

    token_ids: list[int]
    """Tokens of the response, including the one that ended it."""
    prompt_token_ids: list[int]
    """Tokens of the prompt."""
    finish_reason: Literal["stop", "length"]
    logprobs: _Logprobs | None = None
    """Log-probabilities of the response, if requested."""
    prompt_logprobs: list[dict[int, _Logprob] | None] | None = None
    """Log-probabilities of the prompt, if requested: by token id at each position, None at the first."""


class _Listed(BaseModel):
    data: list[ServedModel]


class _Completed(BaseModel):
    choices: list[Choice]


_Shape = TypeVar("_Shape", bound=BaseModel)


class EndpointClient:
    """Sends requests to an endpoint; safe to use from several threads."""

    def __init__(self, endpoint: EndpointConfig, *, connections: int, seconds: float):
        """Prepare a client; nothing is connected yet.

        Args:
            endpoint: The endpoint.
            connections: Most concurrent requests.
            seconds: Longest time that a response may take, in seconds.
        """
        self.endpoint = endpoint
        self._what = f"evaluation.endpoint.url={endpoint.url}"
        self._seconds = seconds
        token = os.environ.get(TOKEN)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._pool = PoolManager(num_pools=1, maxsize=connections, headers=headers, retries=_RETRIES)

    def models(self) -> list[ServedModel]:
        """Return all names under which the endpoint serves models.

        Raises:
            EngineError: It cannot be reached, fails, or has no such API.
            ConfigError: It refuses the token.
        """
        response = self._ask("GET", "/models", _SECONDS_TO_LIST)
        if response.status == 404:
            raise EngineError(
                f"{self._what}: no OpenAI API there (HTTP 404 for {self.endpoint.url}/models); correct its path, /v1 for vLLM and "
                "/openai/v1 for KServe's Hugging Face runtime"
            )
        return self._read(response, _Listed).data

    def complete(self, request: Mapping[str, Any]) -> Choice:
        """Return the response to a request, with the tokens of both.

        Args:
            request: A completion request of one prompt.

        Raises:
            EngineError: The endpoint cannot be reached, fails, or does not answer as vLLM does.
            ConfigError: It refuses the token or the request.
        """
        response = self._ask("POST", "/completions", self._seconds, {**request, "n": 1, "return_token_ids": True})
        choices = self._read(response, _Completed).choices
        if len(choices) != 1:
            raise EngineError(f"{self._what}: {len(choices)} answers to one request; use a vLLM server")
        if choices[0].prompt_token_ids != request["prompt"]:
            raise EngineError(
                f"{self._what}: the server changed a prompt before continuing it; configure it neither to truncate nor to extend prompts"
            )
        return choices[0]

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    def _ask(self, method: str, path: str, seconds: float, body: Mapping[str, Any] | None = None) -> BaseHTTPResponse:
        timeout = Timeout(connect=_SECONDS_TO_CONNECT, read=seconds)
        data = None if body is None else json.dumps(body).encode()
        try:
            return self._pool.request(method, self.endpoint.url + path, body=data, timeout=timeout, redirect=False)
        except HTTPError as error:
            reason = error.reason if isinstance(error, MaxRetryError) and error.reason is not None else error
            if isinstance(reason, ReadTimeoutError):
                raise EngineError(
                    f"{self._what}: no answer within {seconds:.0f} s; look at the server's log, or lower evaluation.batch_size, the "
                    "number of concurrent requests"
                ) from error
            raise EngineError(
                f"{self._what}: cannot be reached ({_line(str(reason))}); start the server, or correct the address"
            ) from error

    def _read(self, response: BaseHTTPResponse, shape: type[_Shape]) -> _Shape:
        if response.status in (401, 403):
            how = f"refuses the token in {TOKEN}" if TOKEN in os.environ else "requires a token"
            raise ConfigError(f"{self._what}: {how} (HTTP {response.status}); set {TOKEN} to the one of the server")
        if response.status == 404:
            raise ConfigError(
                f"{self._what}: {self._said(response)}; set evaluation.endpoint.model to a name that it serves"
            )
        if response.status in (400, 413, 422):
            raise ConfigError(
                f"{self._what}: the server refuses a request: {self._said(response)}; serve the model with room for its prompts and answers"
            )
        if response.status != 200:
            raise EngineError(f"{self._what}: HTTP {response.status}: {self._said(response)}; look at the server's log")
        try:
            return shape.model_validate_json(response.data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the answer"
            raise EngineError(
                f"{self._what}: not a response of vLLM's completions API ({where}: {first['msg']}); use a server with vLLM 0.10.2 or newer"
            ) from error

    def _said(self, response: BaseHTTPResponse) -> str:
        """Return the error message of a response, as one line."""
        try:
            text = json.loads(response.data)["error"]["message"]
        except (ValueError, TypeError, KeyError):
            text = response.data.decode(errors="replace")
        return _line(str(text)) or "no reason given"


def _line(text: str) -> str:
    plain = "".join(letter if letter.isprintable() else " " for letter in redacted(text))
    return " ".join(plain.split())[:_LONGEST_SAID].rstrip(".;")
