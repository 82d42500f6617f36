"""With which key a promoted model is signed, and with which one it must have been signed: the section `signing`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from ngrpo.config.located import absolute, relative_to
from ngrpo.environment import CREDENTIAL
from ngrpo.section import LongText, Section

PASSWORD = "NGRPO_SIGNING_PASSWORD"
"""Environment variable with the password of an encrypted private key."""
VARIABLE = "$"
"""Begins the name of an environment variable that holds a private key itself."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PUBLIC = "-----BEGIN PUBLIC KEY-----"
_LARGEST = 10_000
"""Characters of a file with a public key; the largest curve takes 300."""


def _place_of_key(value: Any) -> Any:
    """Return the name of a variable as it is, and a path as an absolute one."""
    if not isinstance(value, str):
        return value
    if "-----BEGIN" in value:
        raise ValueError(
            "a key itself does not belong into settings: name its file, or $NAME of an environment variable"
        )
    if not value.strip() or not value.isprintable() or len(value) > 1000:
        raise ValueError("name a PEM file, or $NAME of an environment variable that holds the key")
    if not value.startswith(VARIABLE):
        return absolute(value)
    name = value.removeprefix(VARIABLE)
    if _NAME.fullmatch(name) is None or CREDENTIAL.search(name) is None:
        raise ValueError(
            "the name of the variable must tell that it holds a credential, so that nothing shows it: call it NGRPO_SIGNING_KEY"
        )
    return value


def _text_of_public_key(value: Any) -> Any:
    """Return the text of the file that a value names; a value that is a key already, as in settings that are read again, stays."""
    if not isinstance(value, str) or value.startswith(_PUBLIC):
        return value
    if not value.strip() or not value.isprintable() or len(value) > 1000:
        raise ValueError("name a PEM file with a public key")
    try:
        text = Path(absolute(value)).read_bytes()[: _LARGEST + 1].decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise ValueError("no PEM file; make one with `openssl pkey -pubout`") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); {relative_to(value)}") from error
    if "PRIVATE KEY" in text:
        raise ValueError("this is a private key: name the public one, which `openssl pkey -pubout` makes of it")
    if not text.startswith(_PUBLIC) or len(text) > _LARGEST:
        what = "the file is empty" if not text else "no public key in PEM form"
        raise ValueError(f"{what}; make one with `openssl pkey -pubout`")
    return f"{text}\n"


def _no_private_key(text: str) -> str:
    if "PRIVATE KEY" in text:
        raise ValueError("it holds a private key too: name a file with the public one alone")
    return text


class SigningConfig(Section):
    """Keys of signatures over promoted models; without any, models are unsigned."""

    private_key: Annotated[str, BeforeValidator(_place_of_key)] | None = None
    """Elliptic key that promotion signs with: a PEM file, relative to the preset, or `$NAME` of an environment variable that holds the
    key, which `cluster.secrets` fills in pods. The password of an encrypted key is in `NGRPO_SIGNING_PASSWORD`."""
    public_key: Annotated[LongText, BeforeValidator(_text_of_public_key), AfterValidator(_no_private_key)] | None = None
    """PEM file, relative to the preset, with the public key that must have signed a registered base model; its text becomes the setting.
    Without it, signatures of base models are not checked."""

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the private key; none where it is in a file, or there is none."""
        named = self.private_key is not None and self.private_key.startswith(VARIABLE)
        return self.private_key.removeprefix(VARIABLE) if named and self.private_key is not None else None
