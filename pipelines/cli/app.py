"""The command line `ngrpo`: its groups of commands, and its exit codes."""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Annotated

import typer

from ngrpo.checking.light_imports import UNUSED_BY_KUBERNETES, light_imports
from ngrpo.environment import addresses_without_users, redacted
from ngrpo.errors import ConfigError, NGRPOError
from ngrpo.report.phases import Phase
from ngrpo.storage.disk import explain
from ngrpo_kfp.pipelines.cli import (
    checking,
    cluster,
    comparing,
    drafting,
    evaluating,
    inspection,
    local,
    models,
    serving,
    using,
    verifying,
    watching,
)
from ngrpo_kfp.pipelines.cli.command_examples import give_examples
from ngrpo_kfp.pipelines.cli.help import Sections, examples
from ngrpo_kfp.pipelines.cli.lazy import workspace
from ngrpo_kfp.pipelines.local.interrupted import Interrupted

_COMPLETION = "_NGRPO_COMPLETE"
"""Environment variable that the scripts of `--show-completion` set to ask for completions."""

app = typer.Typer(
    cls=Sections,
    help="Post-train reasoning models with N-GRPO.",
    epilog=examples(
        "ngrpo run --preset smollm2          # only what changed since the last run",
        "ngrpo submit --cluster mine.toml    # returns once the run has started",
        "ngrpo promote 3                     # ask the gate about version 3 again",
        "ngrpo logs ngrpo_training --follow  # of the newest run, here or on the cluster",
    ),
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (
    drafting,
    checking,
    local,
    evaluating,
    cluster,
    models,
    using,
    verifying,
    serving,
    watching,
    inspection,
    comparing,
):
    give_examples(group.app)
    app.add_typer(group.app)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"ngrpo {version_of('ngrpo')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    It is 0, 1 after a run that failed, 2 for an error the user can put right, or 128 + n after signal n.

    Args:
        arguments: Command line; by default that of the process.
    """
    if arguments is not None:
        return _guarded(arguments)
    Phase.silent_since = time.monotonic()
    # Imports create a million objects that stay. Collecting garbage after every 700 of them would take a sixth of the time.
    gc.set_threshold(50_000)
    code: int | None = None

    def skip_teardown() -> None:
        # Tearing down everything that was imported takes a quarter of a command's time.
        if code is not None:
            with suppress(OSError, ValueError):  # closed, or no longer read
                sys.stdout.flush()
            os._exit(code)

    atexit.register(skip_teardown)  # before the libraries register theirs, so that it runs after them
    code = _guarded(sys.argv[1:])
    return code


def _guarded(arguments: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Characters that the terminal cannot show must not fail the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _main(list(arguments))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        return _refused_by_system(error)


def _main(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        _check_characters(arguments)
        if _COMPLETION in os.environ:
            with light_imports(("rich",)):  # in which typer would draw help texts: that takes a third of the time
                command.main(arguments, prog_name="ngrpo")  # ends the process
        signal.signal(signal.SIGTERM, _interrupt)
        # Not `command.main`, which has its own messages and exit codes for these exceptions.
        with (
            addresses_without_users(),
            light_imports(UNUSED_BY_KUBERNETES),
            command.make_context("ngrpo", arguments) as context,
        ):
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        return _say(_misused(error))
    except NGRPOError as error:
        return _say(str(error))
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        print("ngrpo: stopped; the next run goes on from here", file=sys.stderr)
        return 128 + number
    return 0


def _misused(error: typer.TyperException) -> str:
    """Return one line on what is wrong with a command line, and which help to read."""
    said = " ".join(error.format_message().split()).replace(": Value error, ", ": ").rstrip(".")  # pydantic's prefix
    context = getattr(error, "ctx", None)  # of the command that could not read its arguments
    return f"{said[:1].lower()}{said[1:]} (`{'ngrpo' if context is None else context.command_path} --help`)"


def _refused_by_system(error: OSError) -> int:
    """Print what the operating system refused; nothing if the reader of a pipe has closed it (`ngrpo plan | head`)."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as refusal:
        # Python would flush it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(refusal, BrokenPipeError):
            return 128 + signal.SIGPIPE
        return _say(f"the standard output cannot be written: {refusal.strerror}; make room, or send it somewhere else")
    try:
        return _say(explain(error, workspace().root))
    except NGRPOError as problem:
        return _say(str(problem))


def _say(problem: str) -> int:
    """Print a problem that the user can fix, and return its exit code."""
    # Names and answers of services may hold control characters, which a terminal would obey.
    shown = "".join(
        letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1] for letter in redacted(problem)
    )
    print(f"ngrpo: {shown}", file=sys.stderr)
    return 2


def _check_characters(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if "\0" in argument or any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise ConfigError(f"argument {argument!r}: it is not UTF-8, or holds a NUL; correct its encoding")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


if __name__ == "__main__":
    sys.exit(main())
