"""Fixtures: the commands of a cluster, against a stateful API and a real object store."""

import pytest
import yaml
from golden_ir import GOLDEN
from kubeflow_stub import serve

from ngrpo_kfp.pipelines.cli import app as cli

IMAGES = ["--images", str(GOLDEN / "images.lock")]
LIBRARIES = "\n[libraries" + (GOLDEN / "images.lock").read_text().partition("\n[libraries")[2]
"""What a lock file says of the libraries in the images."""


@pytest.fixture
def kubeflow(monkeypatch, tmp_path):
    with serve() as state:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", state.address)
        monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # no registry of images is asked
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("HOME", str(tmp_path))
        kubeconfig = tmp_path / ".kube" / "config"
        kubeconfig.parent.mkdir()
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "clusters": [{"name": "c", "cluster": {"server": state.address}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "users": [{"name": "u", "user": {}}],
                    "current-context": "c",
                }
            )
        )
        yield state


@pytest.fixture
def ngrpo(kubeflow, objects, capsys):
    """Run a command; returns its output. It does not wait for a run that it submits, unless `stay` is set."""

    def command(*arguments, code=0, stay=False):
        if (arguments[0] == "submit" or "--from" in arguments) and "--wait" not in arguments and not stay:
            arguments = (*arguments, "--no-wait")
        if arguments[0] == "submit" or arguments[:2] in (("schedule", "create"), ("schedule", "replace")):
            images = () if "--images" in arguments else IMAGES
            arguments = (*arguments, *images, "--set", f"cluster.store={objects.uri}")
        if arguments[0] == "schedule" and "--set" in arguments:
            arguments = (*arguments, "--set", f"cluster.environment.KF_PIPELINES_ENDPOINT={kubeflow.address}")
        if "--from" in arguments:
            arguments = (*arguments, *IMAGES)
        capsys.readouterr()
        assert cli.main(arguments) == code, capsys.readouterr()
        printed = capsys.readouterr()
        if code:
            assert len(printed.err.splitlines()) == 1, printed.err
            return printed.err.rstrip("\n")
        assert "details: " not in printed.out, "kfp's own links"
        return printed.out

    return command


@pytest.fixture
def finish(kubeflow, store, tmp_path):
    """Complete the newest run."""
    return lambda: kubeflow.finish(kubeflow.run(), store, tmp_path / "payloads")
