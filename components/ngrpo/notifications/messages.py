"""An event in the format of its receiver, as JSON.

Texts in an event come from users: names of runs, models and benchmarks, the reason of a rollback. Slack and Teams interpret mark-up, so
texts are sent in fields without it: for Slack in objects of type `plain_text` (docs.slack.dev, "Text object"), for Teams in `TextRun`s of
an Adaptive Card (adaptivecards.microsoft.com, "TextRun").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from ngrpo.config.notifications import EventKind, NotificationConfig
from ngrpo.environment import redacted
from ngrpo.notifications.events import Event, Fact

LAYOUT = 1
NAMES = ("layout", "source", "event", "time", "run", "model", "version", "summary", "facts")
"""Names in the generic format, which are the variables of a template."""
_HEADLINES: dict[EventKind, str] = {
    "failed": "run failed",
    "promoted": "new champion",
    "kept": "champion kept",
    "deployed": "model deployed",
    "not_deployed": "model not deployed",
    "rolled_back": "champion rolled back",
    "watch_alert": "champion watch: alert",
    "finished": "experiment finished",
}
_LONGEST = 1500
"""Most characters of a text; Slack accepts 3,000 in a block, 2,000 in a field."""
_LONGEST_HEADLINE = 120
"""Most characters; Slack accepts 150 in a header, and escaping may lengthen it."""
_MOST_FACTS = 20
_ELLIPSIS = "…"


class TemplateError(ValueError):
    """The user's template cannot be rendered, or its output is not JSON. The error message quotes nothing of the event."""


def payload(settings: NotificationConfig, event: Event) -> bytes:
    """Return the body of the request that delivers an event.

    Raises:
        TemplateError: The user's template cannot be rendered, or its output is not JSON.
    """
    if settings.format == "slack":
        return json.dumps(_slack(event)).encode()
    if settings.format == "teams":
        return json.dumps(_teams(event)).encode()
    if settings.template is None:
        return json.dumps(_document(event)).encode()
    return _filled_in(settings.template, _document(event))


def unknown_names(template: str) -> list[str]:
    """Return the variables of a template that no event has. The template is parsed, not rendered."""
    from jinja2.meta import find_undeclared_variables
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment()
    return sorted(find_undeclared_variables(environment.parse(template)) - environment.globals.keys() - set(NAMES))


def _document(event: Event) -> dict[str, Any]:
    """Return the generic format."""
    values = (
        LAYOUT,
        "ngrpo",
        event.kind,
        datetime.now(UTC).isoformat(timespec="seconds"),
        _optional(event.run),
        _optional(event.model_name),
        event.version,
        _plain(event.summary),
        {name: _plain(value) if isinstance(value, str) else value for name, value in _facts(event)},
    )
    return dict(zip(NAMES, values, strict=True))


def _filled_in(template: str, document: dict[str, Any]) -> bytes:
    from jinja2 import StrictUndefined
    from jinja2.exceptions import TemplateError as JinjaError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        text = ImmutableSandboxedEnvironment(undefined=StrictUndefined).from_string(template).render(document)
    except (JinjaError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise TemplateError(f"its template cannot be rendered ({type(error).__name__})") from error
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TemplateError("the output of its template is not JSON: write values as {{ summary | tojson }}") from error
    return text.encode()


def _slack(event: Event) -> dict[str, Any]:
    headline = _headline(event)
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": _slack_text(headline)},
        {"type": "section", "text": _slack_text(_plain(event.summary))},
    ]
    named = _named(event)
    # Slack accepts at most ten fields in a section.
    for begin in range(0, len(named), 10):
        fields = [_slack_text(f"{name}: {value}") for name, value in named[begin : begin + 10]]
        blocks.append({"type": "section", "fields": fields})
    # `text` is shown in push notifications. It has no type `plain_text`, so its mark-up is switched off instead.
    text = _slack_escaped(f"{headline}: {_plain(event.summary)}")
    return {"text": text, "mrkdwn": False, "unfurl_links": False, "unfurl_media": False, "blocks": blocks}


def _slack_text(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": _slack_escaped(text), "emoji": False}


def _slack_escaped(text: str) -> str:
    """Escape Slack's three control characters, so that no text becomes a mention like `<!channel>`."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _teams(event: Event) -> dict[str, Any]:
    """Return the body for the workflow "Post to a channel when a webhook request is received": a message with one Adaptive Card."""
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [
            _teams_line(_headline(event), weight="Bolder", size="Medium"),
            _teams_line(_plain(event.summary)),
            *(_teams_line(f"{name}: {value}", isSubtle=True) for name, value in _named(event)),
        ],
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


def _teams_line(text: str, **style: Any) -> dict[str, Any]:
    return {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": text, **style}]}


def _headline(event: Event) -> str:
    about = f"{event.model_name} version {event.version}" if event.model_name and event.version else event.run
    return _cut(_plain(f"{_HEADLINES[event.kind]}: {about}" if about else _HEADLINES[event.kind]), _LONGEST_HEADLINE)


def _named(event: Event) -> list[tuple[str, str]]:
    """Return the names and values that are shown below the summary."""
    shown: list[tuple[str, Fact]] = [("run", event.run), ("model", event.model_name), ("version", event.version)]
    return [(name, _plain(str(value))) for name, value in (*shown, *_facts(event)) if value is not None]


def _facts(event: Event) -> Iterator[tuple[str, Fact]]:
    for name, value in list(event.facts.items())[:_MOST_FACTS]:
        yield _cut(_plain(name), 60), value


def _optional(text: str | None) -> str | None:
    return None if text is None else _plain(text)


def _plain(text: str) -> str:
    """Return a text of an event as one line without credentials, cut to the length that receivers accept."""
    # Half a credential would not be recognized as one, so the first cut is between words.
    whole = text if len(text) <= 4 * _LONGEST else " ".join(text[: 4 * _LONGEST].split(" ")[:-1]) + _ELLIPSIS
    return _cut(" ".join("".join(each if each.isprintable() else " " for each in redacted(whole)).split()), _LONGEST)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + _ELLIPSIS
