"""Who is told what happened: the section `notifications` of the configuration. No stage's key depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ngrpo.config.cluster import VariableName
from ngrpo.config.template_file import text_of_template
from ngrpo.environment import CREDENTIAL
from ngrpo.section import LongText, Section, number, refuse

EventKind = Literal["failed", "promoted", "kept", "deployed", "not_deployed", "rolled_back", "watch_alert", "finished"]
"""Kinds of events. `not_deployed`: a deployment was refused or failed; the promotion stands. `finished`: an experiment ended; it promotes
nothing."""
_ALL: tuple[EventKind, ...] = get_args(EventKind)


def _named_like_a_secret(name: str) -> str:
    if not CREDENTIAL.search(name):
        raise ValueError(
            "the address of a webhook is a secret, and only what is named like one is kept out of logs: name an environment variable "
            "with WEBHOOK in its name"
        )
    return name


def _template(value: Any) -> Any:
    return text_of_template(value, "Jinja template")


class NotificationConfig(Section):
    """One webhook, and its events."""

    url_from: Annotated[VariableName, AfterValidator(_named_like_a_secret)]
    """Environment variable with the address of the webhook. The address is a secret: it stands in no setting. On a cluster the variable
    comes from `cluster.secrets`."""
    format: Literal["json", "slack", "teams"] = "json"
    """`slack`: incoming webhook; `teams`: an Adaptive Card for a workflow of Teams; `json`: any receiver."""
    on: Annotated[tuple[EventKind, ...], Field(min_length=1)] = _ALL
    """What it is told."""
    template: Annotated[LongText, BeforeValidator(_template)] | None = None
    """Jinja file, relative to the preset, that renders the JSON to send; `format = "json"` only."""
    timeout: Annotated[float, number(above=0.0, most=60.0)] = 10.0
    """Most seconds that a delivery may take, including its one retry."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        if self.template is None:
            return
        if self.format != "json":
            yield f"template: goes with format='json', not with {self.format!r}: leave one out"
            return
        from jinja2.exceptions import TemplateSyntaxError  # takes a tenth of a second, and few runs need it
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        try:
            ImmutableSandboxedEnvironment().parse(self.template)
        except TemplateSyntaxError as error:
            yield f"template: no Jinja template (line {error.lineno}: {error.message}); correct the file"
