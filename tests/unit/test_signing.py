"""Signatures over a model and the statement on it: every broken link is named. And invalid keys."""

import base64
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from google.protobuf import json_format
from in_toto_attestation.v1 import statement as in_toto
from in_toto_attestation.v1 import statement_pb2

from ngrpo.config import load_config
from ngrpo.config.signing import PASSWORD, SigningConfig
from ngrpo.environment import holds_credential, redacted
from ngrpo.errors import ConfigError, DataError
from ngrpo.signing.evidence import SEAL, SIGNATURE, Evidence, evidence_in
from ngrpo.signing.files import sign_files, verify_files
from ngrpo.signing.keys import private_key, public_key, read_public_key
from ngrpo.signing.statement import digest_of_protocol, sign_statement
from ngrpo.signing.verification import Unsigned, VerificationError, Verified, examine, verify_model
from ngrpo.storage.digest import file_digests, model_digest
from ngrpo_kfp.pipelines.cli.options import PRESETS
from promoting import MIDDLE, evaluation_of
from signing_keys import DOCS, encrypted, make_keys

COMPARISON = {"benchmark": "arithmetic", "statistic": "mean@8", "candidate": 50.0, "interval": [30.0, 45.0]}
DECIDED = {"decision": "promoted", "reason": "better", "comparison": COMPARISON}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("foreign"))


def key_of(pair):
    return private_key(SigningConfig(private_key=str(pair[0])), lambda name: None)


def sealed(directory, pair, *, version="3", counts=MIDDLE, later=False):
    """Write a model, and sign it; return its files and its signatures."""
    model = directory / "model"
    (model / "more").mkdir(parents=True)
    (model / "model.safetensors").write_text(f"weights of version {version}")
    (model / "more" / ".gitignore").write_text("*")
    evaluation = json.dumps(evaluation_of(counts, weights=model_digest(model))).encode()
    protocol = json.loads(evaluation)["protocols"]["trained"]
    said = {
        "model": "test-model",
        "version": version,
        "digest": model_digest(model),
        "decision": DECIDED,
        "evaluation": {
            "key": "evaluation-key",
            "sha256": hashlib.sha256(evaluation).hexdigest(),
            "protocol": protocol,
            "protocol_sha256": digest_of_protocol(protocol),
            "later": later,
        },
        "data": {"train": {"kind": "hub", "revision": "0" * 40}},
        "base": {"kind": "initialized"},
        "lineage": {"dataset": "key-data"},
        "code": {"ngrpo": "0.1.0"},
        "images": {"ngrpo_training": f"registry/ngrpo-gpu@sha256:{'0' * 64}"},
    }
    key = key_of(pair)
    seal = (sign_files(model, key), sign_statement(file_digests(model), said, key), key.public.pem)
    for name, data in zip(SEAL, seal, strict=True):
        (directory / name).write_bytes(data)
    evidence = Evidence("version 3", *seal, evaluation, [{"sequence": 1, **DECIDED}], version)
    return model, evidence


@pytest.fixture
def model(tmp_path, keys):
    return sealed(tmp_path / "version", keys)


def states(model, evidence, key=None) -> dict[str, str]:
    return {link.name: link.state for link in examine(model, evidence, key)}


def broken(model, evidence, key=None) -> list[str]:
    return [name for name, state in states(model, evidence, key).items() if state == "broken"]


def test_every_link_of_what_was_signed_holds(model, keys):
    key = read_public_key(keys[1], "--public-key")
    found = verify_model(*model, key)
    assert isinstance(found, Verified)
    assert {link.state for link in found.links} == {"holds"}
    assert found.fingerprint == hashlib.sha256(keys[1].read_bytes()).hexdigest()


def test_signing_leaves_the_files_of_a_model_as_they_are(tmp_path, keys):
    model, _ = sealed(tmp_path / "one", keys)
    before = model_digest(model)
    sign_files(model, key_of(keys))
    assert model_digest(model) == before


def test_files_that_git_knows_are_signed_like_all_others(tmp_path, keys):
    for name in ("model.safetensors", ".gitattributes", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    key = key_of(keys)
    verify_files(file_digests(tmp_path), sign_files(tmp_path, key), key.public)


def openssf(monkeypatch, directory, public, model) -> int:
    """Run `python -m model_signing verify key`, in this process, and return its exit code."""
    arguments = ["verify", "key", "--no-ignore-git-paths", "--signature", str(directory / SIGNATURE)]
    monkeypatch.setattr(sys, "argv", ["model_signing", *arguments, "--public_key", str(public), str(model)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("model_signing", run_name="__main__")
    return ended.value.code or 0


def test_the_command_of_openssf_agrees(monkeypatch, model, keys, foreign):
    files, directory = model[0], model[0].parent
    assert openssf(monkeypatch, directory, keys[1], files) == 0
    assert openssf(monkeypatch, directory, foreign[1], files) != 0
    (files / "model.safetensors").write_text("others")
    assert openssf(monkeypatch, directory, keys[1], files) != 0


def test_the_statement_is_one_of_in_toto(model):
    envelope = json.loads(model[1].statement)
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    statement = json_format.Parse(base64.b64decode(envelope["payload"]), statement_pb2.Statement())
    in_toto.Statement.copy_from_pb(statement).validate()
    assert [subject.name for subject in statement.subject] == ["model.safetensors", "more/.gitignore"]


# --- what breaks which link ---------------------------------------------------------------------------------------------

FILES, SIGNED, SUBJECT = "signature over the files", "signature of the statement", "subject of the statement"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: (model / "model.safetensors").write_text("tampered"), "changed: model.safetensors"),
        (lambda model: (model / "added.py").write_text("added"), "added: added.py"),
        (lambda model: (model / "more" / ".gitignore").unlink(), "missing: more/.gitignore"),
    ],
)
def test_a_file_that_was_changed_added_or_removed(model, change, said):
    change(model[0])
    assert broken(*model)[:2] == [FILES, SUBJECT]
    with pytest.raises(VerificationError, match=rf"version 3: {FILES}: model.sig: other files .*{said}.*; restore"):
        verify_model(*model, None)


def test_a_replaced_evaluation(model):
    other = json.dumps(evaluation_of([7] * len(MIDDLE), weights=model_digest(model[0]))).encode()
    changed = replace(model[1], evaluation=other)
    assert broken(model[0], changed)[0] == "evaluation"
    with pytest.raises(VerificationError, match="version 3: evaluation: another evaluation"):
        verify_model(model[0], changed, None)
    assert broken(model[0], replace(model[1], evaluation=None)) == ["evaluation"]


def test_an_interval_that_was_changed_in_the_history(model):
    changed = DECIDED | {"comparison": COMPARISON | {"interval": [-3.0, 45.0]}}
    evidence = replace(model[1], decisions=[changed])
    assert broken(model[0], evidence) == ["interval and decision"]
    with pytest.raises(VerificationError, match=r"decision: the history has .*\[-3.0000, 45.0000\].* signed"):
        verify_model(model[0], evidence, None)
    assert broken(model[0], replace(model[1], decisions=[])) == ["interval and decision"]


def test_an_interval_that_was_changed_in_the_statement(model):
    envelope = json.loads(model[1].statement)
    payload = base64.b64decode(envelope["payload"]).replace(b"[30.0, 45.0]", b"[40.0, 45.0]")
    changed = json.dumps(envelope | {"payload": base64.b64encode(payload).decode()}).encode()
    links = states(model[0], replace(model[1], statement=changed))
    assert links[SIGNED] == "broken"
    assert links["interval and decision"] == "not checked"


def test_what_was_decided_later_is_said_and_breaks_nothing(model):
    later = {"decision": "rolled_back", "reason": "worse on real traffic", "comparison": None}
    links = examine(model[0], replace(model[1], decisions=[DECIDED, later]), None)
    assert [link.said for link in links if link.name == "interval and decision"] == [
        "promoted; since then rolled back: worse on real traffic"
    ]


def test_figures_of_a_comparison_that_its_evaluation_does_not_have(tmp_path, keys):
    model = sealed(tmp_path / "other", keys, counts=[2] * len(MIDDLE))  # 25 %, and 50 % was decided on
    assert broken(*model) == ["interval and decision"]
    assert broken(*sealed(tmp_path / "later", keys, counts=[2] * len(MIDDLE), later=True)) == []


def test_a_foreign_key(model, foreign):
    key = read_public_key(foreign[1], "--public-key")
    assert broken(*model, key) == ["key"]
    with pytest.raises(VerificationError, match=r"version 3: key: a foreign key: signed by sha256 .*, asked for is"):
        verify_model(*model, key)


def test_whoever_signs_anew_has_another_key(tmp_path, keys, foreign):
    forged = sealed(tmp_path / "forged", foreign)
    assert broken(*forged) == []
    assert broken(*forged, read_public_key(keys[1], "--public-key")) == ["key"]


def test_a_key_beside_the_model_that_is_not_the_one_that_signed(model, foreign, keys):
    swapped = replace(model[1], signer=foreign[1].read_bytes())
    assert broken(model[0], swapped) == [FILES, SIGNED]
    assert broken(model[0], swapped, read_public_key(keys[1], "--public-key")) == [FILES, SIGNED, "key"]


def test_a_signature_of_another_version(tmp_path, model, keys):
    other = sealed(tmp_path / "two", keys, version="4")[1]
    assert broken(model[0], replace(model[1], signature=other.signature)) == [FILES]
    assert broken(model[0], replace(model[1], statement=other.statement))[0] == SUBJECT
    assert broken(other and model[0], replace(model[1], version="4")) == [SUBJECT]


NESTED = b"[" * 200_000


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff", b"null", b'{"payload": "x"}', NESTED], ids=range(8))
def test_a_corrupt_bundle(model, data):
    assert broken(model[0], replace(model[1], signature=data)) == [FILES]
    assert broken(model[0], replace(model[1], statement=data)) == [SIGNED]


def test_a_bundle_cut_anywhere_is_refused(model):
    whole = json.loads(model[1].signature)
    for part in ("verificationMaterial", "dsseEnvelope", "mediaType"):
        cut = json.dumps({name: value for name, value in whole.items() if name != part}).encode()
        assert broken(model[0], replace(model[1], signature=cut)) == [FILES]
    envelope = json.loads(model[1].statement)
    for part in envelope:
        cut = json.dumps({name: value for name, value in envelope.items() if name != part}).encode()
        assert broken(model[0], replace(model[1], statement=cut)) == [SIGNED]
    unsigned = json.dumps(envelope | {"signatures": []}).encode()
    assert broken(model[0], replace(model[1], statement=unsigned)) == [SIGNED]


def test_a_part_that_is_missing(model, keys):
    assert broken(model[0], replace(model[1], signature=None)) == [FILES]
    assert broken(model[0], replace(model[1], statement=None)) == [SIGNED]
    lost = replace(model[1], signer=None)
    assert broken(model[0], lost) == ["key"]
    assert broken(model[0], lost, read_public_key(keys[1], "--public-key")) == []
    assert broken(model[0], replace(model[1], signer=b"")) == ["key"]


def test_an_unsigned_model_is_no_error_unless_a_key_is_asked_for(model, keys):
    nothing = Evidence("version 3")
    assert verify_model(model[0], nothing, None) == Unsigned("version 3")
    with pytest.raises(VerificationError, match=r"version 3 is unsigned.* is asked for"):
        verify_model(model[0], nothing, read_public_key(keys[1], "--public-key"))


def test_a_directory_with_the_files_side_by_side(model, tmp_path):
    flat = shutil.copytree(model[0], tmp_path / "flat")
    for name in SEAL:
        shutil.copy(model[0].parent / name, flat)
    (flat / "evaluation.json").write_bytes(model[1].evaluation)
    (flat / "README.md").write_text("card")
    for place in (flat, model[0].parent):
        files, evidence = evidence_in(place)
        assert broken(files, evidence) == []
    (flat / "modeling.py").write_text("")
    assert broken(*evidence_in(flat))[0] == FILES


@pytest.mark.parametrize("target", ["/etc", "nowhere", ".", None])
def test_what_no_signature_covers_is_refused(model, tmp_path, target):
    place = shutil.copytree(model[0].parent, tmp_path / "place")
    there = place / "model" / "beside"
    there.symlink_to(target) if target is not None else os.mkfifo(there)
    with pytest.raises(DataError, match=r"beside: neither a file nor a directory of its own"):
        evidence_in(place)


# --- keys ---------------------------------------------------------------------------------------------------------------


def refused(setting, variables=None) -> str:
    with pytest.raises(ConfigError) as caught:
        private_key(SigningConfig(private_key=str(setting)), (variables or {}).get)
    assert "MIG" not in str(caught.value), "the key itself"
    return str(caught.value)


def test_keys_that_are_none(tmp_path, keys):
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    assert "empty" in refused(empty)
    assert "cannot be read" in refused(tmp_path / "missing.pem")
    assert "no private key in PEM form" in refused(keys[1])
    rsa = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genrsa", "-out", str(rsa), "2048"], check=True, capture_output=True)
    assert "no elliptic key" in refused(rsa)
    odd = tmp_path / "odd.pem"
    subprocess.run(["openssl", "ecparam", "-name", "secp256k1", "-genkey", "-noout", "-out", str(odd)], check=True)
    assert "curve secp256k1, but known are P-256" in refused(odd)
    assert "the variable is not set" in refused("$NGRPO_SIGNING_KEY")
    for text, said in (("", "empty"), ("text", "no public key"), (keys[0].read_text(), "this is a private key")):
        with pytest.raises(ConfigError, match=f"--public-key: {said}"):
            public_key(text, "--public-key")


def test_an_encrypted_key_needs_its_password(tmp_path, keys):
    private = shutil.copy(keys[0], tmp_path / "signing.pem")
    closed = encrypted(private, "correct horse")
    assert f"the key is encrypted; put its password into {PASSWORD}" in refused(closed)
    assert "the password is wrong" in refused(closed, {PASSWORD: "wrong"})
    assert "the key is not encrypted; unset" in refused(keys[0], {PASSWORD: "correct horse"})
    opened = private_key(SigningConfig(private_key=str(closed)), {PASSWORD: "correct horse"}.get)
    assert opened.public.pem == keys[1].read_bytes()


def test_a_key_in_an_environment_variable(keys):
    config = SigningConfig(private_key="$NGRPO_SIGNING_KEY")
    key = private_key(config, {"NGRPO_SIGNING_KEY": keys[0].read_text()}.get)
    assert key.public.pem == keys[1].read_bytes()


@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1", "secp521r1"])
def test_every_curve_signs_and_verifies(tmp_path, curve):
    private, public = tmp_path / "k.pem", tmp_path / "k.pub"
    subprocess.run(["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", str(private)], check=True)
    subprocess.run(["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)], check=True)
    assert isinstance(verify_model(*sealed(tmp_path / "v", (private, public)), read_public_key(public, "k")), Verified)


def test_the_settings_of_the_page_are_settings(keys):
    blocks = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        preset = keys[0].with_name("preset.toml")
        preset.write_text(f'extends = "tiny"\n{block}')
        signing = load_config(preset, presets=PRESETS).signing
        assert signing.private_key in (str(keys[0]), "$NGRPO_SIGNING_KEY")


def test_settings_never_hold_a_private_key(tmp_path, keys):
    text = keys[0].read_text()
    for field, value in (
        ("private_key", text),
        ("public_key", text),
        ("public_key", str(keys[0])),
        ("public_key", keys[1].read_text() + text),
    ):
        with pytest.raises(ValueError, match="key") as caught:
            SigningConfig(**{field: value})
        assert "Value error" in str(caught.value)
    with pytest.raises(ValueError, match="call it NGRPO_SIGNING_KEY"):
        SigningConfig(private_key="$MY_VARIABLE")
    config = SigningConfig(private_key=str(keys[0]), public_key=str(keys[1]))
    assert config.public_key == keys[1].read_text()
    assert SigningConfig.model_validate(config.model_dump()) == config


def test_a_private_key_is_taken_out_of_whatever_is_said(keys):
    text = keys[0].read_text()
    secret = text.splitlines()[1]
    for said in (f"error: {text} and more", repr(text), f"cut {text[:90]}"):
        assert secret[:20] not in redacted(said)
    assert holds_credential(text)
    assert redacted(keys[1].read_text()) == keys[1].read_text()
