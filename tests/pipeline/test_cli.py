"""The command line: what it says before anything runs, and how it fails."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from small_house import STAGES

from ngrpo.config import load_config
from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli import options

NGRPO = [sys.executable, "-m", "ngrpo_kfp.pipelines.cli.app"]
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


def test_a_plan_creates_no_workspace(capsys, home):
    assert cli.main(["plan", "--json"]) == 0
    assert [stage["stage"] for stage in json.loads(capsys.readouterr().out)] == list(STAGES)
    assert not home.exists()


def test_a_plan_that_is_refused_leaves_an_empty_workspace_empty(capsys, home):
    home.mkdir()
    assert "mixing.rtae" in fails(capsys, "plan", "--set", "mixing.rtae=1")
    assert not any(home.iterdir())


def test_dry_run_names_what_would_be_downloaded_with_its_revision(capsys):
    cli.main(["run", "--preset", "paper-1.5b", "--dry-run"])
    text = capsys.readouterr().out
    assert re.search(r"model \S+/\S+ at [0-9a-f]{40}", text)
    assert re.search(r"data set agentica-org/DeepScaleR-Preview-Dataset .* at [0-9a-f]{40}", text)
    assert re.search(r"ngrpo_training +│ +\d+ x \d+ GiB", text)
    cli.main(["run", "--preset", "tiny", "--dry-run"])
    assert "Downloads: none" in capsys.readouterr().out


@pytest.mark.parametrize("named", [("--preset", "huge"), ("huge",)])
def test_unknown_preset(capsys, named):
    line = fails(capsys, "plan", *named)
    assert line.startswith("ngrpo: preset huge: unknown; choose one of ")
    assert "tiny" in line


def test_a_preset_is_an_argument_or_an_option(capsys, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text((options.PRESETS / "tiny.toml").read_text().replace("candidates = 32", "candidates = 31"))
    told = []
    for named in ((str(mine),), ("--preset", str(mine))):
        assert cli.main(["run", *named, "--dry-run"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    cli.main(["run", "--dry-run"])
    assert capsys.readouterr().out != told[0]


def test_a_preset_of_ones_own_extends_one_of_ours_by_name(capsys, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "tiny"\ntraining.steps = 20\n')
    assert cli.main(["plan", str(mine), "--set", "training.steps=24"]) == 0
    same = capsys.readouterr().out
    cli.main(["plan"])
    keys = [re.findall(r"[0-9a-f]{12,}", text) for text in (same, capsys.readouterr().out)]
    assert keys[0] == keys[1]
    mine.write_text('extends = "tinny"')
    assert "extends='tinny': unknown; name a TOML file, relative to this one, or one of authors-" in fails(
        capsys, "submit", str(mine)
    )


def test_settings_of_a_library_that_is_not_here_are_said_to_be_unchecked(capsys, monkeypatch):
    monkeypatch.setattr("ngrpo.config.passed_on._package", lambda name: None)
    assert cli.main(["run", "--dry-run", "--set", 'rollout.vllm.options={"block_size": 16}']) == 0
    said = "rollout.vllm.options: not checked here, where vllm is not installed; the stage checks it\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "command",
    [
        ("plan",),
        ("run",),
        ("rerun", "prepare_data"),
        ("rerun", "prepare_data", "--from", "r"),
        ("compile",),
        ("submit",),
        ("doctor",),
        ("schedule", "create", "weekly", "--cron", "0 0 3 * * MON"),
        ("schedule", "replace", "weekly"),
        ("promote", "1"),
        ("rollback", "why"),
        ("history",),
        ("mirror", "hub"),
        ("evaluate", "champion"),
    ],
)
def test_every_command_takes_a_preset_as_its_last_argument_but_not_twice(capsys, home, command):
    line = fails(capsys, *command, "huge", "--preset", "tiny")
    assert line == "ngrpo: PRESET 'huge': --preset tiny names another; leave one of them out"
    if "--from" not in command:
        assert fails(capsys, *command, "huge").startswith("ngrpo: preset huge: unknown; choose one of ")
    assert not home.exists()


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


# --- help, usage, completion ----------------------------------------------------------------------------------------------

COMMANDS = {
    "Run here": ["init", "check", "plan", "run", "rerun", "experiment", "evaluate"],
    "Run on a cluster": ["compile", "submit", "form", "cancel", "doctor", "schedule", "deploy"],
    "Models": [
        "regrade",
        "promote",
        "rollback",
        "history",
        "mirror",
        "export",
        "chat",
        "exec",
        "verify",
        "serve",
        "watch",
    ],
    "Inspect": ["runs", "status", "logs", "prune", "report", "config", "ui", "neighbors", "compare"],
}


def sections(told):
    """The first words of the lines below each heading of a help text."""
    found, listed = {}, []
    for line in told.splitlines():
        if re.match(r"\S.*:$", line):
            found[line.rstrip(":")] = listed = []
        elif re.match(r"  \w", line):
            listed.append(line.split()[0])
    return found


def test_help_lists_the_commands_by_section_with_an_example_of_each(capsys):
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    found = sections(told.partition("Examples:")[0])
    assert {title: found[title] for title in COMMANDS} == COMMANDS
    used = re.findall(r"^    ngrpo (\w+) ", told, re.MULTILINE)
    assert [title for title, names in COMMANDS.items() for name in used if name in names] == list(COMMANDS)


def test_without_a_command_help_is_shown_and_the_exit_code_is_2(capsys):
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert set(COMMANDS) <= set(sections(captured.err))


@pytest.mark.parametrize("command", [name for names in COMMANDS.values() for name in names])
def test_every_command_has_help(capsys, command):
    for word in ("--help", "-h"):
        assert cli.main([command, word]) == 0
        told = capsys.readouterr().out
        assert told.startswith(f"Usage: ngrpo {command} ")
        assert "─" not in told, "no panels"
        assert re.search(rf"^ +ngrpo {command}\b", told.partition("Examples:")[2], re.MULTILINE), "what to type"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stauts"], "no such command 'stauts'. Did you mean 'status'? (`ngrpo --help`)"),
        (["schedule", "lsit"], "no such command 'lsit'. Did you mean 'list'? (`ngrpo schedule --help`)"),
        (["schedule"], "missing command (`ngrpo schedule --help`)"),
        (
            ["plan", "--sede", "3"],
            "no such option: --sede (Possible options: --base, --seed, --set) (`ngrpo plan --help`)",
        ),
        (["plan", "--seed", "x"], "invalid value for '--seed': "),
        (
            ["plan", "--base", "nobody"],
            "invalid value for '--base': 'nobody' is not one of 'champion' (`ngrpo plan --help`)",
        ),
        (["plan", "--seed"], "option '--seed' requires an argument (`ngrpo --help`)"),
        (["run", "--dry-run=3"], "option '--dry-run' does not take a value (`ngrpo --help`)"),
        (["plan", "tiny", "x\x1b[31m"], r"got unexpected extra argument(s) (x\x1b[31m) (`ngrpo plan --help`)"),
        (["promote"], "missing argument 'VERSION' (`ngrpo promote --help`)"),
        (["rerun", "training"], "STAGE 'training': unknown; choose one of prepare_data, "),
    ],
)
def test_what_is_no_command_line_is_one_line(capsys, home, arguments, said):
    assert fails(capsys, *arguments).startswith(f"ngrpo: {said}")
    assert not home.exists()


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ngrpo {metadata.version('ngrpo')}\n"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ngrpo pl", "plan"),
        ("ngrpo rerun ngrpo_t", "ngrpo_training"),
        ("ngrpo plan --preset smol", "smollm2"),
        ("ngrpo run smol", "smollm2"),
        ("ngrpo experiment run tiny", "tiny-example"),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_stages_presets_and_experiments(words, completed, shell):
    """As the functions of `ngrpo --show-completion` ask for it."""
    asked = {"_NGRPO_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}
    asked |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    script = (
        "import atexit, sys\nfrom ngrpo_kfp.pipelines.cli import app as cli\n"
        "atexit.register(lambda: print(*{'ngrpo.config', 'rich', 'kfp'} & {*filter(sys.modules.get, sys.modules)}, file=sys.stderr))\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=True, timeout=60)
    if shell == "bash":
        assert done.stdout.split() == [completed]
    else:
        assert re.match(rf"""_arguments '\*: :\(\("{completed}"(:"[^"]*")?\)\)'""", done.stdout)
    assert done.stderr.split() == [], "a person waits for it at every press of the key"


def test_the_stages_that_a_shell_completes_are_all():
    assert options.completed_stages() == sorted(options.stage_names())


def test_bash_completes_with_the_script_that_it_gets():
    script = (
        f"PATH={Path(sys.executable).parent}:$PATH\n"
        "source <(env _NGRPO_COMPLETE=source_bash ngrpo)\n"
        "COMP_WORDS=(ngrpo rerun model) COMP_CWORD=2\n"
        '$(complete -p ngrpo | sed -E "s/.* -F (\\S+) .*/\\1/") ngrpo\n'
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "model_promotion\n"


@pytest.mark.parametrize("columns", [30, 60])
def test_a_narrow_terminal_cuts_no_table(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main(["run", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "…" not in told
    assert max(map(len, told.splitlines())) <= columns
    squeezed = re.sub(r"[\s│]+", "", told)  # at 30 columns a name goes on in the next line
    assert [stage for stage in STAGES if squeezed.count(stage) < 2] == [], "in the plan and in the needs"


def test_no_color_is_obeyed(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    colour = re.compile(r"\x1b\[[\d;]*3\d")
    assert cli.main(["run", "--dry-run"]) == 0
    assert colour.search(capsys.readouterr().out)
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main(["run", "--dry-run"]) == 0
    assert not colour.search(capsys.readouterr().out)


def test_help_is_there_at_once():
    """What takes long to import is imported by the commands that need it."""
    script = (
        "import sys\nfrom ngrpo_kfp.pipelines.cli import app as cli\ncli.main(['--help'])\n"
        "print([name for name in ('torch', 'kfp', 'mlflow', 'boto3', 'pydantic', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["plan", "no-such-preset"], 2)])
def test_the_process_ends_at_once(arguments, code):
    """To take apart what was imported takes a second after MLflow; what libraries have to do at the end is done."""
    script = (
        "import atexit, sys\nfrom ngrpo_kfp.pipelines.cli import app as cli\n"
        "class Last:\n    def __del__(self): print('torn down', flush=True)\nlast = Last()\n"
        "guarded = cli._guarded\n"
        "cli._guarded = lambda arguments: [atexit.register(print, 'ended'), guarded(arguments)][1]\n"
        "sys.exit(cli.main())"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (code, "ended"), done.stderr


def test_make_says_what_can_be_made():
    root = Path(__file__).parents[2]
    told = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True, timeout=60).stdout
    listed = re.findall(r"^make ([a-z-]+) +\S", told, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)", (root / "Makefile").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(phony[1].split())


LONG_TO_IMPORT = "torch transformers mlflow kfp kubernetes pandas scipy sklearn matplotlib kubernetes_validate numpy boto3 rich pydantic"
NO_MODEL = 'model.source={"kind": "directory", "path": "no-such"}'


@pytest.mark.parametrize(
    ("arguments", "code", "imported"),
    [
        pytest.param(["plan", "--help"], 0, "pydantic", id="help"),  # typer reads its own options by it
        pytest.param(["schedule", "apply", "--help"], 0, "pydantic", id="help of a group"),
        pytest.param(["--version"], 0, "pydantic", id="version"),
        pytest.param(["plan", "--set", "training.nonsense=1"], 2, "pydantic", id="a setting that there is not"),
        pytest.param(["plan", "no-such-preset"], 2, "pydantic", id="a preset that there is not"),
        pytest.param(["plan", "--json"], 0, "boto3 rich pydantic", id="plan"),
        pytest.param(
            ["run", "--set", "training.nonsense=1"], 2, "pydantic", id="a run with a setting that there is not"
        ),
        pytest.param(["run", "--set", NO_MODEL], 2, "rich pydantic", id="a run that cannot succeed"),
        pytest.param(["compile"], 0, "kfp kubernetes boto3 rich pydantic", id="compile"),
        pytest.param(["submit", "--set", "training.nonsense=1"], 2, "pydantic", id="a submission that is refused"),
        pytest.param(["form", "--seed", "-1"], 2, "pydantic", id="a form that is refused"),
        pytest.param(["schedule", "create", "a", "--cron", "@daily", "no-such"], 2, "pydantic", id="a schedule"),
        pytest.param(["schedule", "apply", "no-such.toml"], 2, "pydantic", id="a file of schedules that is not there"),
    ],
)
def test_a_command_imports_what_it_works_with_and_no_more(tmp_path, arguments, code, imported):
    """For that is what a person waits for."""
    script = (
        "import sys\nfrom ngrpo_kfp.pipelines.cli import app as cli\n"
        "code = cli.main(sys.argv[2:])\n"
        "print(code, *(name for name in sys.argv[1].split() if sys.modules.get(name)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, LONG_TO_IMPORT, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=tmp_path,
        env=os.environ | {"NGRPO_HOME": str(tmp_path)},
    )
    said, *loaded = done.stdout.splitlines()[-1].split()
    assert int(said) == code, done.stderr
    assert set(loaded) <= set(imported.split())
    if "--json" in arguments:
        nodes = json.loads(done.stdout[: done.stdout.rindex("]") + 1])
        assert [node["node"] for node in nodes] == list(STAGES)
        assert all(node["key"] and node["reasons"] and not node["cached"] for node in nodes)


def test_a_dry_run_plans_without_what_takes_long_to_import():
    script = (
        "import sys\nfrom ngrpo_kfp.pipelines.cli import app as cli\nimport ngrpo_kfp.pipelines.local.run_pipeline\n"
        "cli.main(['run', '--preset', 'tiny', '--dry-run'])\n"
        "print([name for name in ('torch', 'kfp', 'mlflow', 'pandas', 'transformers', 'numpy', 'boto3') if name in sys.modules])"
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

    monkeypatch.setattr("ngrpo_kfp.pipelines.cli.local.read_config", defect)
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan"])


def test_a_mirror_of_what_is_not_on_the_hub(capsys, tmp_path):
    assert "preset tiny: reads nothing from the hub and no files of this machine" in fails(
        capsys, "mirror", str(tmp_path)
    )


def test_a_mirror_prints_the_settings_that_read_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("ngrpo.data.mirror.mirror", lambda source, target, progress: f"{target}/{source.id}")
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
    assert line.startswith(f"ngrpo: preset {preset!r}: a name consists of ")


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


DRY_RUN = [*NGRPO, "run", "--dry-run"]


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
