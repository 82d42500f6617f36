"""Command lines with nonsense in them: 500 in one process, 20 in processes of their own."""

import os
import re
import subprocess
import sys

from test_command_line_fuzz import begun, no_nonsense_begins

from command_lines import command_lines, write_odd_files

__all__ = ["begun"]

PROCESSES = 20


def test_five_hundred_command_lines(begun, capsys, tmp_path):
    no_nonsense_begins(500, begun, capsys, tmp_path)


def test_twenty_command_lines_as_processes(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write_odd_files(folder)
    # A process takes neither a NUL nor what is no UTF-8 in any way.
    possible = (
        [os.fsencode(word) for word in arguments]
        for arguments, nonsense in command_lines(1000, folder, seed=18)
        if nonsense and not any("\0" in word or "\ud800" in word for word in arguments)
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "NGRPO_"))
    }
    # All commands: they come in turn, a few lines of each.
    tried = list(possible)[:: 1000 // (2 * PROCESSES)][:PROCESSES]
    assert len(tried) == PROCESSES
    tried.append([b"plan", b"--preset", b"\xff.toml"])
    for arguments in tried:
        done = subprocess.run(
            [sys.executable, "-m", "ngrpo_kfp.pipelines.cli.app", *arguments],
            env=environment
            | {"NGRPO_HOME": str(tmp_path / "outputs"), "LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict"},
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
            text=True,
        )
        assert done.returncode == 2, (arguments, done)
        assert "Traceback" not in done.stderr + done.stdout, (arguments, done)
        assert re.search(r"^ngrpo\b.*: ", done.stderr, re.MULTILINE), (arguments, done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files"]
