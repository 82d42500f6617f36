"""Refuse an endpoint that says itself that it serves another model, before a measurement starts.

The names are only a claim: the stage compares log-probabilities with those of the model's files too (`ngrpo.evaluation.endpoint_identity`).
"""

from __future__ import annotations

from ngrpo.config import EndpointConfig
from ngrpo.errors import ConfigError
from ngrpo.evaluation.endpoint_client import EndpointClient

_SECONDS = 30.0


def require_named(endpoint: EndpointConfig, digest: str | None) -> None:
    """Refuse an endpoint that names another model than the one to be measured. One request, of a few bytes.

    Args:
        endpoint: Where the model is served.
        digest: Digest of the model's files; None where it is not known before they are fetched.

    Raises:
        OtherModelError: The files that it serves have another digest.
        ConfigError: It serves no model of the requested name, or refuses the token.
        EngineError: It cannot be reached, or has no such API.
    """
    client = EndpointClient(endpoint, connections=1, seconds=_SECONDS)
    try:
        served = client.models()
    finally:
        client.close()
    meant = [model for model in served if endpoint.model in (None, model.id)]
    if not meant:
        names = ", ".join(model.id for model in served) or "none"
        raise ConfigError(
            f"evaluation.endpoint.url={endpoint.url}: serves {names}; set evaluation.endpoint.model to a name that it serves"
        )
    if digest is None:
        return
    # Imported only now, because it imports torch.
    from ngrpo.evaluation.endpoint_identity import OtherModelError, digest_name

    roots = {model.root for model in meant}
    claimed = {model.id for model in served if model.root in roots and model.id.startswith(digest_name(""))}
    if claimed and digest_name(digest) not in claimed:
        raise OtherModelError(
            f"evaluation.endpoint.url={endpoint.url}: serves another model ({', '.join(sorted(claimed))}, not {digest_name(digest)}); name "
            "the endpoint of this model, or evaluate the model that it serves"
        )
