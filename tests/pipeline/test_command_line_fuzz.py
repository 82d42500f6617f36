"""Random command lines: nonsense is refused before any work begins, with a message and never with a traceback."""

import contextlib
import importlib
from pathlib import Path

import pytest

from command_lines import command_lines, write_odd_files
from ngrpo.config import load_config
from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.local.runs import RunSettings

# Where each command begins its work, once its arguments are right.
BEGINNINGS = (
    "local.measuring.measure",
    "local.store_ahead.store_ahead",
    "local.run_pipeline.show_plan",
    "local.run_pipeline.run",
    "local.run_pipeline.dry_run",
    "local.ui.serve_ui",
    "local.exporting.services",
    "local.chatting.services",
    "local.command.services",
    "kubeflow.compilation.compile_whole",
    "kubeflow.submission.submit",
    "kubeflow.submitted_runs.connect",
    "kubeflow.runs.status.connect",
    "kubeflow.runs.logs.connect",
    "kubeflow.doctor.examination.examine",
    "kubeflow.scheduling.schedules.compile_scheduled_run",
    "kubeflow.scheduling.schedules.connect",
    "kubeflow.scheduling.kept_settings.connect",
    "kubeflow.scheduling.form.compile_form",
    "planning.base_model.from_champion",
    "cli.promotion.promote_version",
    "cli.promotion.roll_back",
    "cli.promotion.show_history",
    "cli.deployment.deployed_configuration",
    "cli.acting.looked_up_settings",
)


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """Which commands have begun their work; they come no further."""
    for name in ("AWS_ENDPOINT_URL", "NGRPO_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")  # else runs are those of this machine
    latest = RunSettings("r", load_config(PRESETS / "tiny.toml"))
    monkeypatch.setattr("ngrpo_kfp.pipelines.cli.acting.settings_of_runs", lambda runs: iter([latest]))
    monkeypatch.setattr("ngrpo_kfp.pipelines.local.named_model.latest_settings", lambda workspace: latest)
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.chdir(tmp_path)
    names = []

    def begin(name):
        def body(*arguments, **options):
            names.append(name)
            raise ConfigError("begun")

        return body

    for name in BEGINNINGS:
        module, _, function = name.rpartition(".")
        monkeypatch.setattr(importlib.import_module(f"ngrpo_kfp.pipelines.{module}"), function, begin(name))
    monkeypatch.setattr("ngrpo.data.mirror.mirror", begin("mirror"))
    monkeypatch.setattr("ngrpo_kfp.pipelines.cli.mirror.services", lambda workspace: contextlib.nullcontext())
    monkeypatch.setattr("ngrpo.data.embedding.load_embedding", begin("neighbors"))
    return names


def test_command_lines_at_random(begun, capsys, tmp_path):
    """`tests/faults` has 500."""
    no_nonsense_begins(150, begun, capsys, tmp_path)


def no_nonsense_begins(count: int, begun: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    write_odd_files(folder)
    before = sorted(folder.rglob("*"))
    wrong = []
    for arguments, nonsense in command_lines(count, folder, seed=17):
        begun.clear()
        code = cli.main(arguments)
        said = capsys.readouterr().err
        begins = not nonsense
        if code != 2 or bool(begun) != begins or ("begun" in said) != begins or "Traceback" in said:
            wrong.append((arguments, said))
        assert all(line.isprintable() for line in said.splitlines()), arguments
    assert wrong == []
    assert sorted(folder.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files"], "nothing else was touched"
