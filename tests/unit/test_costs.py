"""The ledger's arithmetic: what processes took together, prices, and the energy and GPUs of a machine."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from made_up_run import PRESETS
from ngrpo.config import load_config
from ngrpo.config.costs import CostsConfig
from ngrpo.errors import ConfigError
from ngrpo.ledger import devices
from ngrpo.ledger.devices import energy_used, hardware, visible_gpus
from ngrpo.ledger.meter import Meter
from ngrpo.ledger.prices import figures, in_words, money, price_of_a_point, read_prices
from ngrpo.ledger.shapes import shape
from ngrpo.ledger.spending import Cost, Spent, cost_of, together, total

EUROS = CostsConfig(gpu_hour=2.5, cpu_hour=0.04)


def spent(minute: int, seconds: float, outcome: str = "published", **fields) -> Spent:
    """The record of a process that began so many minutes past noon."""
    record = Spent(
        stage="ngrpo_training",
        key="k",
        name=f"20261129T12{minute:02}00000000Z-pod.{minute}",
        run="r",
        shape="s",
        hardware="8 x GPU",
        started=f"2026-11-29T12:{minute:02}:00+00:00",
        outcome=outcome,
        seconds=seconds,
        processor_seconds=2 * seconds,
    )
    return replace(record, **fields)


def test_tries_that_were_killed_or_failed_are_part_of_what_a_result_took():
    killed = spent(0, 120, "running", gpus=8, joules=1e6)
    failed = spent(5, 60, "failed", gpus=8, joules=2e6)
    cost = cost_of([killed, failed, spent(10, 300, gpus=8, joules=3e6)])
    assert (cost.seconds, cost.gpu_seconds, cost.processor_seconds, cost.joules, cost.tries) == (480, 3840, 960, 6e6, 3)


def test_a_result_that_was_made_again_does_not_cost_what_the_damaged_one_did():
    again = [spent(0, 600), spent(20, 60, "failed"), spent(30, 60)]
    assert cost_of(again).seconds == 120
    assert cost_of([*again, spent(40, 999, "failed")]).seconds == 120, "a process that did nothing to it"


def test_without_a_publication_nothing_is_known():
    assert cost_of([]) is None
    assert cost_of([spent(0, 60, "failed")]) is None


def test_nodes_that_work_together_take_their_time_once_and_their_gpus_each():
    nodes = [spent(1, 600, rank=rank, outcome="published" if not rank else "ended", gpus=8) for rank in range(4)]
    waits = spent(0, 700, role="follow", outcome="ended")
    cost = cost_of([waits, *nodes])
    assert cost.seconds == 600
    assert cost.gpu_hours == pytest.approx(4 * 8 / 6)
    assert cost.processor_seconds == 2 * (4 * 600 + 700)
    assert cost.tries == 1


def test_energy_is_none_where_one_gpu_does_not_tell():
    assert total([spent(0, 60)]).joules is None, "no GPU"
    assert total([spent(0, 60, gpus=1, joules=5.0), spent(2, 60, gpus=1)]).joules is None
    assert together([Cost(gpu_seconds=1, joules=5.0), Cost(seconds=3)]).joules == 5.0
    assert together([Cost(gpu_seconds=1, joules=5.0), Cost(gpu_seconds=1)]).joules is None


def test_money_is_hours_times_prices_and_none_without_a_price():
    cost = Cost(seconds=1800, processor_seconds=7200, gpu_seconds=8 * 1800, joules=3.6e6)
    assert money(cost, EUROS) == pytest.approx(4 * 2.5 + 2 * 0.04)
    assert money(cost, CostsConfig(gpu_hour=2.5)) == 10.0
    assert money(cost, CostsConfig()) is None
    assert money(Cost(processor_seconds=3600), CostsConfig(gpu_hour=2.5)) is None, (
        "a price of GPUs says nothing of a run without"
    )
    assert in_words(cost, EUROS) == "30.0 min, 2 processor-hours, 4 GPU-hours, 1 kWh, 10.08 EUR"
    assert in_words(Cost(seconds=36, processor_seconds=36), CostsConfig()) == "36.0 s, 0.01 processor-hours"
    assert "energy unknown" in in_words(replace(cost, joules=None), EUROS)
    assert figures(Cost(seconds=36), CostsConfig()) == {"hours": 0.01, "processor_hours": 0.0, "gpu_hours": 0.0}
    assert set(figures(cost, EUROS)) == {"hours", "processor_hours", "gpu_hours", "kwh", "money"}


def test_a_point_has_a_price_only_where_the_gain_is_above_zero():
    cost = Cost(gpu_seconds=3600 * 8)
    assert price_of_a_point(cost, EUROS, 4.0, (2.0, 5.0)) == (
        "5 EUR (4 to 10, by the interval of the gain: +4.0 points, +2.0 to +5.0)"
    )
    assert price_of_a_point(cost, CostsConfig(), 4.0, (2.0, 5.0)).startswith("2 GPU-hours (1.6 to 4")
    assert price_of_a_point(Cost(processor_seconds=7200), CostsConfig(), 4.0, (2.0, 8.0)).startswith(
        "0.5 processor-hours"
    )
    for low in (0.0, -0.5):
        said = price_of_a_point(cost, EUROS, 1.0, (low, 2.5))
        assert said.startswith("none: the gain is not above zero (+1.0 points")


def test_only_settings_that_decide_the_time_make_another_shape():
    config = '{"seed":0,"training":{"steps":30,"learning_rate":1e-6,"rewards":{"a":{"weight":1.0}}}}'
    same = shape("ngrpo_training", config)
    assert shape("ngrpo_training", config.replace('"seed":0', '"seed":7')) == same
    assert shape("ngrpo_training", config.replace("1e-6", "2e-6")) == same
    assert shape("ngrpo_training", config.replace("30", "60")) != same
    assert shape("sft_warm_start", config) != same


def test_a_meter_counts_the_processor_time_of_children_that_work_and_of_those_that_have_ended():
    busy = "import time; start = time.process_time()\nwhile time.process_time() - start < 0.4: pass\n"
    meter = Meter()
    subprocess.run([sys.executable, "-c", busy], check=True)
    child = subprocess.Popen([sys.executable, "-c", busy + "print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
    child.stdout.readline()
    reading = meter.read()
    child.kill()
    child.wait()
    child.stdout.close()
    assert 0.8 <= reading.processor_seconds < 3
    assert reading.seconds > 0
    assert reading.joules is None


class NVML(SimpleNamespace):
    """What the ledger asks of `pynvml`: three GPUs, which have used 1, 2 and 3 kJ, and use 50 J more from one look to the next."""

    class NVMLError(Exception):
        """An error of NVML."""

    def __init__(self, refuses: bool = False):
        super().__init__(nvmlInit=lambda: None, nvmlShutdown=lambda: None, looks=Counter(), refuses=refuses)
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetHandleByUUID = lambda uuid: {"GPU-c": 2}[uuid]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.refuses:
            raise self.NVMLError("Not Supported")
        self.looks[handle] += 1
        return 1e6 * (handle + 1) + 5e4 * (self.looks[handle] - 1)  # mJ


def test_energy_is_the_difference_of_nvmls_counters(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", NVML())
    assert energy_used(["0", "GPU-c"]) == [1000, 3000]
    meter = Meter(["0", "1"])
    assert [meter.read().joules for _ in range(2)] == [100, 200]


def test_energy_is_not_told_without_nvml_or_where_a_gpu_refuses(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", NVML(refuses=True))
    assert Meter(["0"]).read().joules is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Meter(["0"]).read().joules is None
    assert Meter().read().joules is None


@pytest.mark.parametrize(
    ("variable", "seen"),
    [(None, ["0", "1", "10"]), ("", []), ("1", ["1"]), ("GPU-c, 0", ["GPU-c", "0"]), ("-1", [])],
)
def test_visible_gpus_are_those_of_the_driver_that_the_environment_leaves(tmp_path, monkeypatch, variable, seen):
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus(tmp_path) == seen
    assert visible_gpus(tmp_path / "null") == []


def test_hardware_names_gpus_by_the_driver_and_else_the_processor(tmp_path, monkeypatch):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text("Model: \t\t NVIDIA H100\nIRQ:   42\n")
    assert hardware(["0", "1"], tmp_path) == "2 x NVIDIA H100"
    assert hardware(["0"], tmp_path / "none") == "1 x GPU"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A  Processor\nmodel name\t: A  Processor\n")
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    assert devices.processor_of(tmp_path / "cpuinfo") == "2 cores, A Processor"


def test_prices_pass_to_stages_as_json():
    assert read_prices(None) == CostsConfig()
    assert read_prices(EUROS.model_dump_json()) == EUROS
    with pytest.raises(ConfigError, match="NGRPO_COSTS: not the section `costs` as JSON; unset it"):
        read_prices('{"gpu_hour": -1}')


@pytest.mark.parametrize(
    "setting", ["gpu_hour=-1", "cpu_hour=true", "gpu_hour=1e9", "currency=euro", "currency=", "gpu_hours=2"]
)
def test_prices_that_cannot_be_are_refused(setting):
    with pytest.raises(ConfigError, match=rf"costs\.{setting.partition('=')[0]}"):
        load_config(PRESETS / "tiny.toml", [f"costs.{setting}"])
