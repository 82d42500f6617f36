"""`ngrpo verify`: whether what vouches for a model holds, link by link."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.config.signing import SigningConfig
from ngrpo.errors import TrackingError
from ngrpo.signing.keys import PublicKey, public_key, read_public_key, require_library
from ngrpo_kfp.pipelines.local.named_model import ALIASES, is_version, latest_configuration, settings_of_version
from ngrpo_kfp.pipelines.local.required_key import required_key
from ngrpo_kfp.pipelines.local.runs import latest_settings
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.workspace import Workspace

if TYPE_CHECKING:
    from ngrpo.signing.evidence import Evidence

_COLOURS = {"holds": "green", "broken": "red", "not checked": "yellow"}


def verify(what: str, model_name: str | None, key_file: Path | None, workspace: Workspace, console: Console) -> None:
    """Verify what vouches for a model, and show every link.

    Args:
        what: `champion` or another alias, the number of a version, or a directory with a model and its signatures.
        model_name: The registered model; none for that of the latest run.
        key_file: PEM file with the public key that it must be signed with; none for that of the settings (`required_key`), of a directory
            those of the latest run.
        workspace: Where runs and services are.
        console: Where the links are shown.

    Raises:
        VerificationError: A link is broken, or the model is unsigned and a key is asked for.
        ConfigError: The key cannot be used, or it is not known which registered model is meant.
        DataError: There is no such directory.
        TrackingError: There is no such version, or the registry cannot be reached.
        StoreError: The object store cannot be reached.
    """
    require_library("ngrpo verify")
    given = None if key_file is None else read_public_key(key_file, f"--public-key {key_file}")
    if not is_version(what):
        from ngrpo.signing.evidence import evidence_in

        _judge(*evidence_in(Path(what)), given or _key_of_latest(workspace), console)
        return
    name = model_name or latest_configuration(workspace).promotion.model_name
    with services(workspace) as around, tempfile.TemporaryDirectory(prefix="ngrpo-") as scratch:
        from ngrpo.signing.evidence import registered_evidence
        from ngrpo.storage.digest import file_digests
        from ngrpo.tracking.promotions import Promotions

        promotions = Promotions.in_store(around.store_uri, name)
        registry = promotions.registry
        version = registry.by_alias(what) if what in ALIASES else registry.version(what)
        if version is None:
            raise TrackingError(
                f"model {name} has no {what if what in ALIASES else f'version {what}'}: `ngrpo history` lists its versions, --model names "
                "another model"
            )
        evidence = registered_evidence(promotions, version)
        key = given
        if given is None:
            required = required_key(settings_of_version(version, workspace), name, workspace)
            key = _key_of(required.signing)
            if key is not None:
                console.print(escape(f"key: signing.public_key of {required.whose}"), soft_wrap=True)
        _judge(file_digests(registry.download(version, Path(scratch))), evidence, key, console)


def _judge(files: dict[str, str], evidence: Evidence, key: PublicKey | None, console: Console) -> None:
    from ngrpo.signing.verification import examine, require_links, verify_model

    if not evidence.signed:
        console.print(escape(str(verify_model(files, evidence, key))), soft_wrap=True)
        return
    links = examine(files, evidence, key)
    table = Table(title=escape(evidence.label))
    table.add_column("link", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("why", overflow="fold")
    for link in links:
        colour = _COLOURS[link.state]
        table.add_row(link.name, f"[{colour}]{link.state}", escape(link.said))
    console.print(table)
    require_links(links, evidence)
    console.print(f"{escape(evidence.label)}: no link is broken", soft_wrap=True)


def _key_of(signing: SigningConfig) -> PublicKey | None:
    text = signing.public_key
    return None if text is None else public_key(text, "signing.public_key")


def _key_of_latest(workspace: Workspace) -> PublicKey | None:
    """Return the key of the latest run; none where there is no run, or no key in it."""
    latest = latest_settings(workspace)
    return None if latest is None else _key_of(latest.config.signing)
