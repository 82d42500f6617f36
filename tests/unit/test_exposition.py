"""A training that Prometheus scrapes: a real endpoint, read while a real trainer works, and parsed by Prometheus' own parser."""

import socket
import urllib.request
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from prometheus_client import REGISTRY, Gauge
from prometheus_client.parser import text_string_to_metric_families
from transformers import Trainer, TrainerCallback, TrainingArguments

from ngrpo.environment import METRICS_HOST, METRICS_PORT
from ngrpo.errors import ConfigError
from ngrpo.report.exposition import Exposition, expose
from ngrpo.report.progress_lines import show_progress


@pytest.fixture
def port(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    monkeypatch.setenv(METRICS_PORT, str(number))
    monkeypatch.delenv(METRICS_HOST, raising=False)
    return number


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        f"{sample.name}{sorted(sample.labels.items()) if sample.labels else ''}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return {"loss": (self.weight * x).square().mean()}


class Scraper(TrainerCallback):
    """Scrapes after every log, as Prometheus might."""

    def __init__(self, port: int):
        self.port = port
        self.scraped = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "train_runtime" not in logs:
            self.scraped.append((dict(logs), scrape(self.port)))


def test_a_real_training_is_scraped_while_it_works_and_no_longer(tmp_path, port):
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(Model(), arguments, train_dataset=[{"x": torch.ones(1)}] * 24)
    trainer.section = "warm_start"
    show_progress(trainer, {}, lambda line: None)
    scraper = Scraper(port)
    trainer.add_callback(scraper)
    trainer.train()
    assert len(scraper.scraped) == 3
    for step, (logs, values) in enumerate(scraper.scraped, start=1):
        label = "[('section', 'warm_start')]"
        assert values[f"ngrpo_training_step{label}"] == step
        assert values[f"ngrpo_training_steps{label}"] == 3
        assert values[f"ngrpo_training_loss{label}"] == pytest.approx(logs["loss"])
        assert values[f"ngrpo_training_learning_rate{label}"] == pytest.approx(logs["learning_rate"])
        assert "process_resident_memory_bytes" in values, "the registry of the process is there too: vLLM's"
    with pytest.raises(URLError):
        scrape(port)


def log(exposition: Exposition, step: int, **logs: object) -> None:
    state = SimpleNamespace(is_world_process_zero=True, global_step=step, max_steps=9)
    exposition.on_log(None, state, None, logs=logs)


@pytest.fixture
def exposition():
    opened = Exposition("training", "127.0.0.1", 0)
    yield opened
    opened.on_train_end(None, None, None)


def test_what_a_policys_training_logs_is_there_by_name(exposition):
    log(exposition, 1, reward=0.25, kl=0.5, num_tokens=1000.0, step_time=4.0, **{"mixing/gate_rate": 0.1})
    log(exposition, 2, reward=float("nan"), num_tokens=1600, step_time=2.0)
    values = {name.partition("[")[0]: value for name, value in scrape(exposition.port).items() if "section" in name}
    assert values["ngrpo_training_reward"] == 0.25, "a value that is not finite is none"
    assert values["ngrpo_training_kl"] == 0.5
    assert values["ngrpo_training_gate_ratio"] == 0.1
    assert values["ngrpo_training_step"] == 2
    assert values["ngrpo_training_step_seconds"] == 2.0
    assert values["ngrpo_training_tokens_total"] == 1600
    assert values["ngrpo_training_tokens_per_second"] == 300
    log(exposition, 3, num_tokens=200, step_time=1.0)
    values = {name.partition("[")[0]: value for name, value in scrape(exposition.port).items() if "section" in name}
    assert values["ngrpo_training_tokens_total"] == 1800, "a resumed process counts from zero"


def test_what_vllm_keeps_in_the_process_is_served_beside_it(exposition):
    running = Gauge("vllm:num_requests_running", "Requests.", ["engine"])
    try:
        running.labels("0").set(7)
        assert scrape(exposition.port)["vllm:num_requests_running[('engine', '0')]"] == 7
    finally:
        REGISTRY.unregister(running)


def trainer(first: bool = True):
    callbacks = []
    return SimpleNamespace(is_world_process_zero=lambda: first, add_callback=callbacks.append, callbacks=callbacks)


def test_of_several_processes_only_the_first_listens(port):
    other = trainer(first=False)
    expose(other, "training")
    assert other.callbacks == []
    with pytest.raises(URLError):
        scrape(port)


@pytest.mark.parametrize("text", ["http", "0", "65536", "-1", "9400.5"])
def test_what_is_no_port_is_refused(monkeypatch, text):
    monkeypatch.setenv(METRICS_PORT, text)
    with pytest.raises(
        ConfigError, match=f"NGRPO_METRICS_PORT='{text}': no port; set it to 9400, for example, or unset it"
    ):
        expose(trainer(), "training")


def test_a_port_that_is_taken_is_refused_in_one_line(port):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ConfigError, match=f"NGRPO_METRICS_PORT={port}: nothing can listen on 127.0.0.1:{port}"):
            expose(trainer(), "training")


def test_it_listens_on_loopback_unless_it_is_told_otherwise(port, monkeypatch):
    monkeypatch.setenv(METRICS_HOST, "127.0.0.2")
    opened = trainer()
    expose(opened, "training")
    with pytest.raises(URLError):
        scrape(port)
    urllib.request.urlopen(f"http://127.0.0.2:{port}/metrics", timeout=5).close()
    opened.callbacks[0].on_train_end(None, None, None)
