"""Render a chat template once, in a subprocess with limited time and memory and without secrets (see `ngrpo.data.chat`).

Templates come with models and are untrusted, and Jinja's sandbox limits neither time nor memory. Only Jinja is imported, so a trial takes
a tenth of a second. The environment matches that of `transformers.utils.chat_template_utils`, which renders templates later.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 2
"""CPU time limit of a trial; ordinary templates take milliseconds."""
LONGEST = 200_000
"""Limit on the output of a template, in characters; the input has a few thousand."""
_MEMORY = 1 << 30


class _Generation(Extension):
    """Renders `generation` blocks, which mark the assistant's text, as plain blocks."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # jinja declares a set that may change

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _render(template: str, variables: dict[str, Any], now: datetime) -> str:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": now.strftime}
    length, pieces = 0, []
    for piece in environment.from_string(template).generate(variables):
        length += len(piece)
        if length > LONGEST:
            raise TemplateError(f"it writes more than {LONGEST} characters for a short conversation")
        pieces.append(piece)
    return "".join(pieces)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, hard))


def _main() -> None:
    """Read `{"template", "conversations": [variables], "day"}` from stdin; write a list with `{"text"}` or `{"error"}` for each."""
    _limit(resource.RLIMIT_CPU, CPU_SECONDS)
    if sys.platform == "linux":  # other kernels refuse or ignore it
        _limit(resource.RLIMIT_AS, _MEMORY)
    task = json.load(sys.stdin)
    now = datetime.fromisoformat(task["day"])
    results = []
    for variables in task["conversations"]:
        try:
            results.append({"text": _render(task["template"], variables, now)})
        except Exception as error:  # a template can raise any exception
            results.append({"error": f"{type(error).__name__}: {error}"[:200]})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    _main()
