"""A served model that answers in an evaluation, in place of an engine of this machine."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from ngrpo.section import Line, Section, unless_set

_FORM = "write http://HOST:PORT/v1 or https://HOST/PATH/v1"


def _check_url(text: str) -> str:
    """Return the address of an OpenAI API without the slash at its end; without a path it gets that of vLLM, `/v1`.

    Raises:
        ValueError: It is not such an address, or has something in it that is shown and recorded and may be a secret.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{error}; {_FORM}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"no address of an API; {_FORM}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"the address is shown and recorded, so it has no user, password, '?' or '#'; {_FORM}, and give a token in NGRPO_ENDPOINT_TOKEN"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


class EndpointConfig(Section):
    """A model that vLLM serves somewhere. Its token, if it requires one, is in `NGRPO_ENDPOINT_TOKEN`."""

    url: Annotated[Line, Field(max_length=500), AfterValidator(_check_url)]
    """Address of its OpenAI API; `/v1` is added if there is no path."""
    model: Line | None = unless_set(None)
    """Name of the model there; none if the endpoint serves only one."""
