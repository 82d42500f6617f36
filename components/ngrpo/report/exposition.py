"""How a training goes, for Prometheus to scrape: an HTTP endpoint of the training process, off unless it is given a port.

vLLM's own metrics are there too, where its engine lives in this process and keeps them (`rollout.vllm.options.disable_log_stats = false`):
both are read from the registries of `prometheus_client`.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, start_http_server
from transformers import Trainer, TrainerCallback

from ngrpo.environment import METRICS_HOST, METRICS_PORT
from ngrpo.errors import ConfigError

_LOOPBACK = "127.0.0.1"
_LARGEST_PORT = 65535
_OF_LOG: Mapping[str, tuple[str, str]] = {
    "loss": ("loss", "Loss of the last step."),
    "grad_norm": ("gradient_norm", "Norm of the gradient at the last step, before it is clipped."),
    "learning_rate": ("learning_rate", "Learning rate of the last step."),
    "reward": ("reward", "Mean reward of the last rollout batch."),
    "reward_std": ("reward_std", "Standard deviation of the rewards in a group, last rollout batch."),
    "kl": ("kl", "KL divergence of the policy from the reference."),
    "entropy": ("entropy_nats", "Entropy of the policy."),
    "mixing/gate_rate": ("gate_ratio", "Mixed share of the response tokens of the last rollout batch."),
    "completions/mean_length": ("response_tokens", "Mean length of a response in the last rollout batch."),
    "completions/clipped_ratio": ("truncated_ratio", "Share of the responses that were cut off at the token limit."),
    "step_time": ("step_seconds", "Time of the last step."),
    "eval_mean": ("validation_ratio", "Correct answers to the benchmark that selects the checkpoint."),
}
"""Gauges by the name of the metric in a trainer's log: name after `ngrpo_training_`, and meaning."""


class Exposition(TrainerCallback):
    """Serves the last values of a training until it ends."""

    def __init__(self, section: str, host: str, port: int):
        """Open the endpoint.

        Args:
            section: Section of the configuration that the training is of, the label `section` of each value.
            host: Address to listen on.
            port: Port; 0 for any that is free.

        Raises:
            ConfigError: Nothing can listen there.
        """
        # A registry of its own: vLLM has the process's, and a process may train twice.
        self._registry = CollectorRegistry()
        self._section = section
        self._gauges = {log: self._gauge(name, meaning) for log, (name, meaning) in _OF_LOG.items()}
        self._step = self._gauge("step", "Last optimizer step that was logged.")
        self._steps = self._gauge("steps", "Steps of the whole training.")
        self._speed = self._gauge("tokens_per_second", "Tokens of prompts and responses in a second of the last step.")
        self._logged = self._gauge("last_log_timestamp_seconds", "When the last step was logged, seconds since 1970.")
        self._tokens = Counter(
            "ngrpo_training_tokens", "Tokens of prompts and responses.", ["section"], registry=self._registry
        ).labels(section)
        self._seen = 0.0
        self._registry.register(REGISTRY)
        try:
            self._server, self._thread = self._serve(host, port)
        except OSError as error:
            raise ConfigError(
                f"{METRICS_PORT}={port}: nothing can listen on {host}:{port} ({error.strerror}): name another port, or unset it"
            ) from error

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_port)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Take over what a step has logged."""
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        for name, gauge in self._gauges.items():
            value = logs.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                gauge.set(value)
        self._step.set(state.global_step)
        self._steps.set(state.max_steps)
        self._logged.set(time.time())
        self._count(logs)

    def on_train_end(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Close the endpoint."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _count(self, logs: Mapping[str, Any]) -> None:
        tokens, seconds = logs.get("num_tokens"), logs.get("step_time")
        if not isinstance(tokens, int | float):
            return
        # They are counted from the start of the training, or of the process that resumed it.
        new = tokens - self._seen if tokens >= self._seen else tokens
        self._seen = tokens
        self._tokens.inc(new)
        if isinstance(seconds, int | float) and seconds > 0:
            self._speed.set(new / seconds)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"ngrpo_training_{name}", meaning, ["section"], registry=self._registry).labels(self._section)

    def _serve(self, host: str, port: int) -> tuple[WSGIServer, threading.Thread]:
        server, thread = start_http_server(port, addr=host, registry=self._registry)
        return server, thread


def expose(trainer: Trainer, section: str) -> None:
    """Let a trainer be scraped on the port that the environment names; of several processes only the first can be.

    Raises:
        ConfigError: `NGRPO_METRICS_PORT` is not a port, or nothing can listen there.
    """
    if not trainer.is_world_process_zero():
        return
    text = os.environ[METRICS_PORT]
    if not text.isdecimal() or not 0 < int(text) <= _LARGEST_PORT:
        raise ConfigError(f"{METRICS_PORT}={text!r}: no port; set it to 9400, for example, or unset it")
    trainer.add_callback(Exposition(section, os.environ.get(METRICS_HOST) or _LOOPBACK, int(text)))
