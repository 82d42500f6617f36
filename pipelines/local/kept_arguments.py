"""Keep kfp's local runner from changing the arguments of components."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_COMMAND = 4
"""sh -ec SCRIPT SOURCE, as kfp compiles a component; its arguments follow."""


@contextmanager
def kept_arguments() -> Iterator[None]:
    """Keep kfp from changing the arguments of components while the context is open.

    kfp replaces the text `python3` by the path of the interpreter in every argument: in prompts, names of libraries and paths. Only the
    command needs the replacement.
    """
    from kfp.local import subprocess_task_handler

    original = subprocess_task_handler.replace_python_executable

    def replace(full_command: list[str], new_executable: str) -> list[str]:
        return [*original(full_command[:_COMMAND], new_executable), *full_command[_COMMAND:]]

    subprocess_task_handler.replace_python_executable = replace
    try:
        yield
    finally:
        subprocess_task_handler.replace_python_executable = original
