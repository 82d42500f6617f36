"""Notify the webhooks of a configuration about the end of a run on this machine, or a manual decision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from ngrpo.config import RunConfig
from ngrpo.contracts.promotion import Promotion
from ngrpo.errors import NGRPOError
from ngrpo.notifications.events import Event, decided
from ngrpo.notifications.reasons import reason_of
from ngrpo.notifications.webhooks import announce, not_set

if TYPE_CHECKING:
    from ngrpo.tracking.promotions import Entry


class RunError(NGRPOError):
    """A run failed. `brief` is one sentence on the reason that may leave the machine."""

    def __init__(self, message: str, brief: str):
        super().__init__(message)
        self.brief = brief


def warn_of_missing(config: RunConfig, console: Console) -> None:
    """Warn before a run about webhooks that cannot be notified."""
    for line in not_set(config.notifications):
        console.print(f"[yellow]{escape(line)}[/yellow]", soft_wrap=True)


@contextmanager
def failure_announced(config: RunConfig, run: str) -> Iterator[None]:
    """Notify about an error that leaves the context, and raise it again. A run that was told to stop has not failed."""
    try:
        yield
    except Exception as error:
        brief = error.brief if isinstance(error, RunError) else reason_of(error)
        announce(
            config.notifications,
            Event("failed", run, config.promotion.model_name, None, brief, {"preset": config.preset}),
        )
        raise


def announce_decisions(config: RunConfig, promotions: Iterable[Promotion], run: str | None = None) -> None:
    """Notify about decisions of a run, or a manual one."""
    for promotion in promotions:
        event = decided(promotion, run)
        if event is not None:
            announce(config.notifications, event)


def announce_rollback(config: RunConfig, entry: Entry) -> None:
    """Notify about a manual rollback."""
    facts = {"champion before": entry["before"]["champion"], "champion": entry["after"]["champion"]}
    model, version = config.promotion.model_name, int(entry["version"])
    announce(config.notifications, Event("rolled_back", None, model, version, entry["reason"], facts))
