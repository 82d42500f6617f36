"""Triton's interpreter without what takes most of its time: it patches its language anew at each call of each function."""

from types import SimpleNamespace

from triton.runtime import interpreter


def patch_once() -> None:
    """Let a process in which everything is interpreted patch for each function once, for good."""
    patched = set()
    patch = interpreter._patch_lang

    def patch_new(function):
        if function not in patched:
            patch(function)
            patched.add(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_new
