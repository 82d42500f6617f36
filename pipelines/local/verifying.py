"""`ngrpo verify`: verify the signatures of a model, link by link."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.config.signing import SigningConfig
from ngrpo.errors import StoreError, TrackingError
from ngrpo.report.phases import messages, phase
from ngrpo.section import check_name
from ngrpo.signing.keys import PublicKey, public_key, read_public_key, require_library
from ngrpo.storage.digest import digest_of, file_digests
from ngrpo_kfp.pipelines.local.named_model import (
    is_version,
    latest_configuration,
    registered_version,
    require_version,
    settings_of_version,
)
from ngrpo_kfp.pipelines.local.required_key import RequiredKey, required_key
from ngrpo_kfp.pipelines.local.runs import RunSettings, latest_settings
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.workspace import Workspace

if TYPE_CHECKING:
    from ngrpo.signing.evidence import Evidence

_COLOURS = {"holds": "green", "broken": "red", "not checked": "yellow"}


def verify(
    what: str,
    model_name: str | None,
    key_file: Path | None,
    workspace: Workspace,
    console: Console,
    *,
    as_json: bool = False,
) -> None:
    """Verify the signatures of a model and what they cover, and show every link.

    Args:
        what: `champion` or another alias, the number of a version, or a directory with a model and its signatures.
        model_name: The registered model; None for that of the latest run, and for a directory that which its statement names.
        key_file: PEM file with the public key that must have signed it; None for that of the settings (`required_key`). A directory is
            looked up in the registry by its files.
        workspace: Where runs and services are.
        console: Where the links are shown.
        as_json: Print them as JSON in place of a table.

    Raises:
        VerificationError: A link is broken, or a key is required and the model is unsigned.
        ConfigError: The key cannot be used, or it is not known which registered model is meant.
        DataError: There is no such directory.
        TrackingError: There is no such version, or the registry cannot be reached.
        StoreError: The object store cannot be reached.
    """
    require_library("ngrpo verify")
    given = None if key_file is None else read_public_key(key_file, f"--public-key {key_file}")
    if not is_version(what):
        from ngrpo.signing.evidence import evidence_in

        files, evidence = evidence_in(Path(what))
        key = given
        if given is None:
            counts = _key_of_directory(files, evidence, model_name, workspace)
            key = None if counts is None else _key_of(counts.signing)
            if counts is not None and key is not None and not as_json:
                console.print(escape(f"key: signing.public_key of {counts.whose}"), soft_wrap=True)
        _judge(files, evidence, key, console, as_json)
        return
    name = model_name or latest_configuration(workspace).promotion.model_name
    require_version(what, name, workspace)
    with (
        phase(messages(console, as_json=as_json), f"fetching {what} and its evidence"),
        services(workspace) as around,
        tempfile.TemporaryDirectory(prefix="ngrpo-") as scratch,
    ):
        from ngrpo.signing.evidence import registered_evidence
        from ngrpo.tracking.promotions import Promotions

        promotions = Promotions.in_store(around.store_uri, name)
        registry = promotions.registry
        version = registered_version(registry, what)
        evidence = registered_evidence(promotions, version)
        key = given
        if given is None:
            required = required_key(settings_of_version(version, workspace), name, workspace)
            key = _key_of(required.signing)
            if key is not None and not as_json:
                console.print(escape(f"key: signing.public_key of {required.whose}"), soft_wrap=True)
        _judge(file_digests(registry.download(version, Path(scratch))), evidence, key, console, as_json)


def _judge(files: dict[str, str], evidence: Evidence, key: PublicKey | None, console: Console, as_json: bool) -> None:
    from ngrpo.signing.verification import examine, require_links, verify_model

    if not evidence.signed:
        said = str(verify_model(files, evidence, key))
        if as_json:
            _print(console, {"model": evidence.label, "signed": False, "links": []})
        else:
            console.print(escape(said), soft_wrap=True)
        return
    links = examine(files, evidence, key)
    if as_json:
        shown = [{"link": link.name, "state": link.state, "why": link.said} for link in links]
        _print(console, {"model": evidence.label, "signed": True, "links": shown})
        require_links(links, evidence)
        return
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


def _print(console: Console, record: Mapping[str, Any]) -> None:
    console.out(json.dumps(record, indent=1, ensure_ascii=False), highlight=False)


def _key_of(signing: SigningConfig) -> PublicKey | None:
    text = signing.public_key
    return None if text is None else public_key(text, "signing.public_key")


def _key_of_directory(
    files: Mapping[str, str], evidence: Evidence, model_name: str | None, workspace: Workspace
) -> RequiredKey | None:
    """Return the key that applies to a directory: that of the run that trained the version with these files; None if there are no runs.

    Without such a version, or without the registry, it is that of the newest run of the same model, and without a key there that of the
    latest run. The name of the model is the one in the statement, which is not verified yet: whoever writes the directory can choose it.
    """
    latest = latest_settings(workspace)
    if latest is None:
        return None
    name = model_name or _stated_model(evidence) or latest.config.promotion.model_name
    own, told = None, ""
    if evidence.signed:  # without signatures the files were not read
        try:
            own, told = _made_by(digest_of(files), name, workspace)
        except (TrackingError, StoreError) as error:
            told = f"the registry cannot be reached ({error})"
    required = required_key(own, name, workspace)
    if required.signing.public_key is None:
        # The name may be chosen so that no key is required.
        required = RequiredKey(latest.config.signing, f"run {latest.name}, the latest")
    return RequiredKey(required.signing, f"{required.whose}; {told}") if told else required


def _made_by(digest: str, model_name: str, workspace: Workspace) -> tuple[RunSettings | None, str]:
    """Return the settings of the run here that made the version with some files, and which version that is."""
    with services(workspace):
        from ngrpo.tracking.model_registry import DIGEST, ModelRegistry

        version = next((each for each in ModelRegistry(model_name).versions() if each.tags.get(DIGEST) == digest), None)
    if version is None:
        return None, f"no version of {model_name} has these files"
    return settings_of_version(version, workspace), f"these are the files of version {version.version} of {model_name}"


def _stated_model(evidence: Evidence) -> str | None:
    """Return the registered model that a statement names; None if there is none to be read."""
    try:
        envelope = json.loads(evidence.statement or b"{}")
        return check_name(json.loads(base64.b64decode(envelope["payload"]))["predicate"]["model"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
