"""`ngrpo exec`: a command finds the services of the workspace, and its exit code is passed on."""

import signal
import stat
import sys

import pytest

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.local import command as module
from ngrpo_kfp.pipelines.local.command import run_command
from ngrpo_kfp.pipelines.local.interrupted import Interrupted
from ngrpo_kfp.pipelines.local.workspace import Workspace

pytestmark = pytest.mark.pipeline


@pytest.fixture
def workspace(tmp_path, s3_environment, monkeypatch) -> Workspace:
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(tmp_path / "outputs")


def test_a_command_finds_the_services_and_the_programs_of_this_environment(workspace, s3, tmp_path, capfd):
    script = (
        "import os, shutil; open('mine', 'w').close(); "
        "print(os.environ['MLFLOW_TRACKING_URI'], os.environ['AWS_ENDPOINT_URL'], shutil.which('mlflow'))"
    )
    assert run_command([sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {script}"], workspace) == 0
    tracking, store, program = capfd.readouterr().out.split()
    assert (tracking, store) == (f"sqlite:///{workspace.database}", s3.url)
    assert program.startswith(sys.prefix)
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) & 0o400
    assert (tmp_path / "mine").stat().st_mode & 0o044, "what the command writes is not kept to ourselves"


def test_its_exit_code_is_ours_and_its_options_are_its_own(workspace):
    assert cli.main(["exec", sys.executable, "-c", "raise SystemExit(7)"]) == 7
    assert cli.main(["exec", "--", "sh", "-c", "exit 0"]) == 0
    assert cli.main(["exec", "sh", "-c", "kill -KILL $$"]) == 128 + signal.SIGKILL


def test_no_such_command(workspace):
    with pytest.raises(ConfigError, match=r"exec: './absent' cannot be run: No such file or directory; name a command"):
        run_command(["./absent"], workspace)
    with pytest.raises(ConfigError, match="exec: no command"):
        run_command([""], workspace)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 3), (Interrupted(signal.SIGTERM), 128 + signal.SIGTERM)]
)
def test_the_command_is_waited_for_and_told_of_a_signal_that_a_terminal_does_not_send(
    workspace, error, code, monkeypatch
):
    wait = module.subprocess.Popen.wait
    first = iter([error])

    def interrupted(process, *arguments, **options):
        for each in first:
            raise each
        return wait(process, *arguments, **options)

    monkeypatch.setattr(module.subprocess.Popen, "wait", interrupted)
    assert run_command(["sh", "-c", "sleep 3; exit 3"], workspace) == code
