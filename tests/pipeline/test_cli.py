"""The command line: what it says before anything runs, and how it fails."""

import errno
import io
import os
import re
import signal
import subprocess
import sys

import pytest
from small_house import STAGES

from ngrpo.config import load_config
from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli import options

PRESETS = sorted(path.stem for path in options.PRESETS.glob("*.toml"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "NGRPO_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def fails(capsys, *arguments):
    """Run a command that must fail in one line, and return the line."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize("preset", PRESETS)
def test_dry_run_shows_the_plan_and_the_needs_of_every_preset_and_touches_nothing(capsys, home, preset):
    assert cli.main(["run", "--preset", preset, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for stage in STAGES:
        assert len(re.findall(rf"│ {stage} ", text)) == 2, "once in the plan, once in the needs"
    assert "store not consulted" in text
    assert "Downloads" in text
    assert not home.exists()


def test_dry_run_names_what_would_be_downloaded_with_its_revision(capsys):
    cli.main(["run", "--preset", "paper-1.5b", "--dry-run"])
    text = capsys.readouterr().out
    assert re.search(r"model \S+/\S+ at [0-9a-f]{40}", text)
    assert re.search(r"data set agentica-org/DeepScaleR-Preview-Dataset .* at [0-9a-f]{40}", text)
    assert re.search(r"ngrpo_training +│ +\d+ x \d+ GiB", text)
    cli.main(["run", "--preset", "tiny", "--dry-run"])
    assert "Downloads: none" in capsys.readouterr().out


def test_unknown_preset(capsys):
    line = fails(capsys, "plan", "--preset", "huge")
    assert line.startswith("ngrpo: --preset huge: unknown; choose one of ")
    assert "tiny" in line


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("mixing.k=0", "mixing.k"),
        ("mixing.rate=1.5", "mixing.rate"),
        ("mixing.speed=1", "mixing.speed"),
        ("rollout.temperature=0", "rollout.temperature"),
        ("nonsense", "nonsense"),
        ("rollout.top_p=0.9", "top_p=0.9"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it(capsys, home, override, named):
    assert named in fails(capsys, "run", "--set", override)
    assert not home.exists()


def test_seed_is_short_for_a_setting(capsys):
    assert "seed" in fails(capsys, "run", "--seed", "-1")


def test_an_unreachable_store_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert "127.0.0.1:9" in fails(capsys, "plan", "--preset", "tiny")


def test_a_run_that_needs_gpus_says_so_before_it_starts(house):
    refused = house.ngrpo("run", "--set", "training.steps=31", "--set", "resources.ngrpo_training.gpus=64", code=2)
    assert re.search(r"resources\.ngrpo_training\.gpus=64 but this machine has \d+", refused.stderr)
    assert len(refused.stderr.splitlines()) == 1
    assert house.ran() == []


def test_a_report_of_no_run(capsys):
    assert "no summary.json" in fails(capsys, "report")


def test_planning_imports_neither_torch_nor_kfp_nor_mlflow():
    script = (
        "import sys\nfrom ngrpo_kfp.pipelines.cli import app as cli\nimport ngrpo_kfp.pipelines.local.run_pipeline\n"
        "cli.main(['run', '--preset', 'tiny', '--dry-run'])\n"
        "print([name for name in ('torch', 'kfp', 'mlflow', 'pandas', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_promotion_imports_no_torch():
    script = "import sys, ngrpo.stages.model_promotion; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    def defect(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "read_config", defect)
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan"])


def test_a_mirror_of_what_is_not_on_the_hub(capsys, tmp_path):
    assert "preset tiny: reads nothing from the hub" in fails(capsys, "mirror", str(tmp_path))


def test_a_mirror_prints_the_settings_that_read_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("ngrpo.data.mirror.mirror", lambda source, target: f"{target}/{source.id}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert cli.main(["mirror", "--preset", "paper-1.5b", "s3://b/hub"]) == 0
    overrides = capsys.readouterr().out.replace("--set ", "").split()
    config = load_config(options.PRESETS / "paper-1.5b.toml", overrides)
    assert {
        source.id.startswith("s3://b/hub/") for source in (config.model.source, *config.data.benchmarks.values())
    } == {True}


@pytest.mark.parametrize("port", ["-1", "0", "65536", "99999"])
def test_what_is_no_port(capsys, home, port):
    assert fails(capsys, "ui", "--port", port) == f"ngrpo: --port {port}: a port is a number from 1 to 65535"
    assert not home.exists()


@pytest.mark.parametrize("preset", ["", "../presets/tiny", "my preset!", "x" * 300, "a\nb"])
def test_what_is_no_name_of_a_preset(capsys, preset):
    line = fails(capsys, "plan", "--preset", preset)
    assert line.startswith(f"ngrpo: --preset {preset!r}: a name consists of ")


@pytest.mark.parametrize("argument", ["a\udcff", "a\0b"])
def test_arguments_are_utf_8(capsys, argument):
    line = fails(capsys, "plan", "--set", f"mixing.end_marker={argument}")
    assert line.startswith("ngrpo: argument 'mixing.end_marker=a\\")
    assert "not UTF-8, or holds a NUL" in line


@pytest.mark.parametrize("output", [".", "absent/p.yaml", ""])
def test_compile_looks_where_it_will_write_before_it_works(capsys, monkeypatch, tmp_path, output):
    lock = tmp_path / "images.lock"
    lock.write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ngrpo_kfp.pipelines.kubeflow.compilation.compile_whole", None)
    assert "--output" in fails(capsys, "compile", "--images", str(lock), "--output", output)


def refuse(monkeypatch, error):
    """Let a command fail by what the operating system refuses."""

    def refused(*arguments, **options):
        raise error

    monkeypatch.setattr("ngrpo_kfp.pipelines.local.run_pipeline.show_plan", refused)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "'/a/b': Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/a"), "'/a': Is a directory"),
        (OSError(errno.EIO, "Input/output error", "/a", None, "/b"), "'/a' and '/b': Input/output error"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError("something\nin two lines"), "something in two lines"),
        (OSError(), "OSError"),
        (TimeoutError("timed out"), "timed out"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
    ],
)
def test_what_the_system_refuses_is_one_line(capsys, monkeypatch, error, said):
    refuse(monkeypatch, error)
    assert said in fails(capsys, "plan")


def test_a_full_disk_is_one_line_that_says_where_and_how_much_room_there_is(capsys, home, monkeypatch):
    refuse(monkeypatch, OSError(errno.ENOSPC, "No space left on device", str(home / "mlflow.db")))
    line = fails(capsys, "plan")
    assert re.search(rf"'{home}/mlflow\.db' cannot be written: No space left on device: \d+ bytes free in /", line)
    refuse(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    assert len(re.findall(r"\d+ bytes free in /", fails(capsys, "plan"))) == 2, "the workspace and the temporary files"


def test_control_characters_do_not_reach_the_terminal(capsys, monkeypatch):
    refuse(monkeypatch, ConfigError("name \x1b[31m of \u202e"))
    assert fails(capsys, "plan") == r"ngrpo: name \x1b[31m of \u202e"


def test_output_that_the_terminal_has_no_characters_for(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(
        "ngrpo_kfp.pipelines.local.run_pipeline.show_plan", lambda *arguments, **options: print("→ é \udcff")
    )
    assert cli.main(["plan"]) == 0
    assert written.getvalue() == b"\\u2192 \\xe9 \\udcff\n"


DRY_RUN = [sys.executable, "-m", "ngrpo_kfp.pipelines.cli.app", "run", "--dry-run"]


def test_who_has_seen_enough_is_told_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(DRY_RUN, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (1, 128 + signal.SIGPIPE)


def test_a_full_standard_output_is_one_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(DRY_RUN, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert re.match("ngrpo: .*the standard output,? cannot be written: No space left on device", done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 2
