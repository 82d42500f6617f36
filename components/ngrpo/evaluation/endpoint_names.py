"""Which model an endpoint says that it serves: a claim, beside which `ngrpo.evaluation.endpoint_identity` compares log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from ngrpo.config.endpoint import EndpointConfig
from ngrpo.errors import ConfigError
from ngrpo.evaluation.endpoint_client import ServedModel

_DIGEST = "ngrpo-model-"


class OtherModelError(ConfigError):
    """An endpoint serves another model than it should."""


def digest_name(digest: str) -> str:
    """Return the name of a served model that identifies its files.

    Args:
        digest: `ngrpo.storage.digest.model_digest` of the model's directory.
    """
    return _DIGEST + digest[:32]


def served_model(
    endpoint: EndpointConfig, served: Sequence[ServedModel], digest: str | None
) -> tuple[ServedModel, bool]:
    """Return the model of an endpoint to send requests for, and whether one of its names is the digest of its files.

    Args:
        endpoint: The endpoint; its `model` selects a name.
        served: All names that it serves.
        digest: Digest of the model that is to be evaluated; None if it is not known yet, and then only the selected name is checked.

    Raises:
        OtherModelError: A name is the digest of other files.
        ConfigError: The endpoint serves no model, not the selected one, or several of which none is selected.
    """
    what = f"evaluation.endpoint.url={endpoint.url}"
    model = _chosen(served, endpoint.model, digest, what)
    digests = {other.id for other in served if other.id.startswith(_DIGEST) and other.root == model.root}
    if digest is not None and digests and digest_name(digest) not in digests:
        raise OtherModelError(
            f"{what}: serves another model ({', '.join(sorted(digests))}, not {digest_name(digest)}); name the endpoint of this model, or "
            "evaluate the model that it serves"
        )
    return model, bool(digests)


def _chosen(served: Sequence[ServedModel], asked: str | None, digest: str | None, what: str) -> ServedModel:
    """Return the model of an endpoint that the settings select."""
    by_name = {model.id: model for model in served}
    names = ", ".join(by_name) or "none"
    if asked is not None:
        if asked not in by_name:
            raise ConfigError(f"evaluation.endpoint.model={asked!r}: {what} serves {names}; name one of these")
        return by_name[asked]
    if digest is not None and digest_name(digest) in by_name:
        return by_name[digest_name(digest)]
    if not served:
        raise ConfigError(f"{what}: serves no model; start the server with one")
    if digest is not None and len({model.root or model.id for model in served}) > 1:
        raise ConfigError(f"{what}: serves {names}; set evaluation.endpoint.model to one of these")
    return served[0]
