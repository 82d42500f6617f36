"""Check that templates of notifications use names that an event has: a wrong one would cost the message at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator

from ngrpo.checking.findings import Finding
from ngrpo.config import RunConfig
from ngrpo.notifications.messages import NAMES, unknown_names


def check_templates(config: RunConfig) -> Iterator[Finding]:
    """Refuse names that no event has. Nothing is rendered."""
    for name, settings in config.notifications.items():
        unknown = [] if settings.template is None else unknown_names(settings.template)
        if unknown:
            subject = f"notifications.{name}.template"
            yield Finding(
                "error",
                subject,
                f"{subject}: unknown {', '.join(unknown)}",
                f"an event has {', '.join(NAMES)}: correct the file",
            )
