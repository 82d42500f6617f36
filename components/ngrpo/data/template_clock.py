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
    """Make a tokenizer render chats with a fixed date, in our calls and in TRL's; the tokenizer that is saved is unchanged.

    `apply_chat_template` hands keyword arguments that it does not know to the template, where they win over what transformers provides.
    """
    write = partial(tokenizer.apply_chat_template, strftime_now=TemplateClock(day))
    tokenizer.apply_chat_template = write
