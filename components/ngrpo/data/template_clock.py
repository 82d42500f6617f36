"""What chat templates are told when they ask for the date (`strftime_now`): the day that the settings name, never the clock."""

from __future__ import annotations

from datetime import date, datetime, time
from functools import partial

from transformers import PreTrainedTokenizerBase


class TemplateClock:
    """Stands still at the beginning of a day; a template calls it as `strftime_now`."""

    def __init__(self, day: date) -> None:
        self._now = datetime.combine(day, time())

    def __call__(self, form: str) -> str:
        """Return the day in a form of `strftime`."""
        return self._now.strftime(form)


def stop_clock(tokenizer: PreTrainedTokenizerBase, day: date) -> None:
    """Let everything that a tokenizer writes as a chat, also for TRL, be of one day; what is saved of it stays as it was.

    What `apply_chat_template` does not know itself goes to the template, where it stands before what transformers provides.
    """
    write = partial(tokenizer.apply_chat_template, strftime_now=TemplateClock(day))
    tokenizer.apply_chat_template = write
