"""The date that chat templates get from `strftime_now`: a configured day, never the clock."""

from __future__ import annotations

from datetime import date, datetime, time
from functools import partial

from transformers import PreTrainedTokenizerBase


class TemplateClock:
    """Replacement for `strftime_now` that always returns the beginning of the same day."""

    def __init__(self, day: date) -> None:
        self._now = datetime.combine(day, time())

    def __call__(self, form: str) -> str:
        """Format the day with `strftime`."""
        return self._now.strftime(form)


def stop_clock(tokenizer: PreTrainedTokenizerBase, day: date) -> None:
    """Make a tokenizer render chats with a fixed date, in our calls and in TRL's. Saving the tokenizer is not affected.

    `apply_chat_template` passes unknown keyword arguments to the template, where they override the functions of transformers.
    """
    write = partial(tokenizer.apply_chat_template, strftime_now=TemplateClock(day))
    tokenizer.apply_chat_template = write
