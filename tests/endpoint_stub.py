"""A stand-in for vLLM's server: answers greedily with a small model, in the shape that vLLM 0.32 answers in."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from loopback import QuietHandler, served
from ngrpo.rollout.loading import load_model


class EndpointStub:
    """What the server is, and what it was asked; tests change it as they like."""

    def __init__(self, directory: Path, *names: str, room: int = 128, token: str | None = None):
        self.model = load_model(directory, "float32")
        self.served = [{"id": name, "root": str(directory), "max_model_len": room} for name in names]
        self.room = room
        self.token = token
        self.faults: list[tuple[int, str]] = []
        """Statuses and bodies that the next requests for completions get."""
        self.change: dict[str, Any] = {}
        """What stands in a choice in place of what belongs there."""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self._lock = threading.Lock()

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        prompt = request["prompt"]
        sequence, stopped, chosen = list(prompt), False, []
        for _ in range(min(request["max_tokens"], self.room - len(prompt))):
            with self._lock, torch.inference_mode():
                logprobs = self.model(torch.tensor([sequence])).logits[0].float().log_softmax(-1)
            token = int(logprobs[-1].argmax())
            chosen.append(float(logprobs[-1, token]))
            sequence.append(token)
            stopped = token in request["stop_token_ids"]
            if stopped:
                break
        choice = {
            "index": 0,
            "text": "",
            "finish_reason": "stop" if stopped else "length",
            "stop_reason": None,
            "token_ids": sequence[len(prompt) :],
            "prompt_token_ids": prompt,
            "logprobs": None,
            "prompt_logprobs": None,
        }
        if "prompt_logprobs" in request:
            places = [
                {str(token): {"logprob": float(logprobs[place, token]), "rank": 1, "decoded_token": "?"}}
                for place, token in enumerate(prompt[1:])
            ]
            choice["prompt_logprobs"] = [None, *places]
            choice["logprobs"] = {"token_logprobs": chosen, "tokens": [], "text_offset": [], "top_logprobs": []}
        return {"id": "cmpl-1", "object": "text_completion", "choices": [choice | self.change], "usage": {}}


@contextmanager
def serving(stub: EndpointStub) -> Iterator[EndpointStub]:
    """Serve for as long as the context is open."""

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                self._send(404, {"detail": "Not Found"})
            elif self._known():
                self._send(200, {"object": "list", "data": stub.served})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._known():
                return
            stub.requests.append(request)
            if stub.faults:
                status, body = stub.faults.pop(0)
                self._send(status, body)
            elif request["model"] not in [model["id"] for model in stub.served]:
                self._error(404, f"The model `{request['model']}` does not exist.")
            else:
                self._send(200, stub.complete(request))

        def _known(self) -> bool:
            stub.headers.append(dict(self.headers))
            if stub.token is None or self.headers["Authorization"] == f"Bearer {stub.token}":
                return True
            self._error(401, f"Unauthorized: {self.headers['Authorization']}")
            return False

        def _error(self, status: int, message: str) -> None:
            self._send(status, {"error": {"message": message, "type": "Error", "param": None, "code": status}})

        def _send(self, status: int, body: object) -> None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with served(Handler) as port:
        stub.url = f"http://127.0.0.1:{port}/v1"
        yield stub
