"""Signed promotions in a real registry: what is kept, what `ngrpo verify` says of it, and what a run may start from."""

import base64
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from golden_ir import GOLDEN
from mlflow import MlflowClient

from ngrpo.config import RunConfig, load_config, validate
from ngrpo.config.signing import PASSWORD, SigningConfig
from ngrpo.errors import ConfigError, DataError, TrackingError
from ngrpo.signing.evidence import SEAL, STATEMENT, registered_evidence
from ngrpo.signing.keys import read_public_key
from ngrpo.signing.verification import VerificationError, Verified, verify_model
from ngrpo.stages.context import Context
from ngrpo.stages.model_promotion import run
from ngrpo.storage.digest import digest_of, model_digest
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import write_state
from ngrpo.tracking.model_registry import CHAMPION, DIGEST, ModelRegistry
from ngrpo.tracking.promotions import Promotions
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_whole
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.local.named_model import NamedModel
from ngrpo_kfp.pipelines.local.services import Services
from ngrpo_kfp.pipelines.local.vouched_model import require_verified, seal_of
from ngrpo_kfp.pipelines.planning.base_model import from_champion
from ngrpo_kfp.pipelines.planning.signatures import require_key, require_key_in_pods, require_verified_base
from promoting import MIDDLE, NAME, PROBLEMS, TINY, candidate, settings
from signing_keys import encrypted, make_keys

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def promotions(database, objects, monkeypatch, tmp_path):
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    monkeypatch.setenv("COLUMNS", "250")
    MlflowClient().create_experiment("ngrpo", f"{objects.uri}/mlflow")
    return Promotions.in_store(objects.uri, NAME)


@pytest.fixture
def promote(promotions, tmp_path):
    """Make a candidate, run the stage on it, and return its decision."""

    def function(name, counts=MIDDLE, *, private=None, variable=os.environ.get, **options):
        config = settings()
        signing = {} if private is None else {"private_key": str(private)}
        config = config.model_copy(update={"signing": type(config.signing)(**signing)})
        output = tmp_path / "output"
        output.mkdir(exist_ok=True)
        inputs = candidate(tmp_path / "inputs", name, counts, **options)
        lines: list[str] = []
        context = Context(output, store=os.environ["NGRPO_STORE"], variable=variable, progress=lines.append)
        run(config, inputs, output, context)
        return json.loads((output / "promotion.json").read_text()) | {"lines": lines, "inputs": inputs}

    return function


def beside(promotions, number="1") -> ObjectStore:
    """The place of a version in object storage."""
    location = promotions.registry.location(promotions.registry.version(number))
    return ObjectStore(location.rpartition("/")[0])


def copied(promotions, directory: Path) -> Path:
    """Copy what the registry keeps of version 1 to a directory."""
    place = beside(promotions)
    for name in place.list(""):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(place.get_bytes(name))
    return directory


def verify(capsys, *arguments) -> tuple[int, str]:
    capsys.readouterr()
    code = cli.main(["verify", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_a_signed_promotion_holds_and_binds_what_led_to_it(promotions, promote, keys, capsys, tmp_path):
    decision = promote("first", private=keys[0], variable={"NGRPO_IMAGES": '{"ngrpo_training": "i@sha256:0"}'}.get)
    assert decision["signed"]["files"] == list(SEAL)
    assert "is signed by the key sha256" in decision["lines"][-1]
    version = promotions.registry.version("1")
    model = decision["inputs"]["trained"] / "model"
    assert promotions.registry.stored_digest(version) == version.tags[DIGEST] == model_digest(model)

    envelope = json.loads(promotions.registry.file(version, STATEMENT))
    said = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    assert said["lineage"]["dataset"] == "key-data"
    assert said["decision"]["comparison"]["interval"] == decision["comparison"]["interval"]
    assert said["evaluation"]["protocol"]["arithmetic"]["revision"] == "r"
    assert said["code"]["ngrpo_training"] == "v"
    assert said["images"] == {"ngrpo_training": "i@sha256:0"}
    assert said["data"]["train"]["kind"] == "arithmetic"
    assert said["base"]["kind"] == "initialized"

    card = promotions.registry.file(version, "README.md").decode()
    assert all(name in card for name in SEAL)
    for number in ("1", CHAMPION):
        code, told = verify(capsys, number, "--model", NAME, "--public-key", keys[1])
        assert (code, told.count("holds")) == (0, 6)
        assert "no link is broken" in told
    code, told = verify(capsys, "1", "--model", NAME)
    assert code == 0
    assert "name yours with --public-key" in told
    code, told = verify(capsys, "1", "--model", NAME, "--public-key", keys[1], "--json")
    assert (code, {link["state"] for link in json.loads(told)["links"]}) == (0, {"holds"})


def test_the_private_key_is_nowhere_but_in_its_file(promotions, promote, keys, objects, tmp_path):
    secret = keys[0].read_text().splitlines()[1].encode()
    promote("first", private=keys[0])
    promote(
        "second", [6] * PROBLEMS, private="$NGRPO_SIGNING_KEY", variable={"NGRPO_SIGNING_KEY": keys[0].read_text()}.get
    )
    kept = [objects.get_bytes(key) for key in objects.list("")]
    here = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 10
    assert [data for data in kept + here if secret in data] == []


def test_a_promotion_without_a_key_says_so_and_is_no_refusal_unless_a_key_is_asked_for(
    promotions, promote, keys, capsys
):
    decision = promote("first")
    assert decision["signed"] is None
    assert decision["lines"][-1] == "version 1 is unsigned: signing.private_key names no key"
    assert (
        "Unsigned: signing.private_key"
        in promotions.registry.file(promotions.registry.version("1"), "README.md").decode()
    )
    code, told = verify(capsys, "1", "--model", NAME)
    assert (code, told) == (0, f"model {NAME}: version 1 is unsigned: nothing vouches for it\n")
    code, told = verify(capsys, "1", "--model", NAME, "--public-key", keys[1])
    assert code == 2
    assert "is unsigned: nothing vouches for it, and a signature by the key" in told


@pytest.fixture
def leave(tmp_path):
    """Leave a run behind that trained a model."""

    def function(day: int, trained: str, model_name: str, *overrides: str) -> None:
        run = tmp_path / "outputs" / "runs" / f"2026010{day}-000000-000000-tiny"
        run.mkdir(parents=True)
        config = load_config(TINY, [f"promotion.model_name={model_name}", *overrides])
        write_state(run / "config.json", config.model_dump(mode="json"))
        stages = {"ngrpo_training": {"key": trained, "artifact": "s3://x/y/"}}
        write_state(run / "summary.json", {"stages": stages, "wall_seconds": 1.0, "mlflow": {"run_id": "r"}})

    return function


def test_the_key_of_the_run_that_made_it_counts_not_that_of_the_latest(
    promotions, promote, keys, leave, capsys, tmp_path
):
    foreign = make_keys(tmp_path / "foreign")[1]

    promote("first", private=keys[0])
    leave(1, "key-first", NAME, f"signing.public_key={keys[1]}")
    leave(2, "key-other", NAME, f"signing.public_key={foreign}")
    leave(3, "key-another", "another", f"signing.public_key={foreign}")
    code, told = verify(capsys, "champion", "--model", NAME)
    assert (code, told.count("holds")) == (0, 6)
    assert "key: signing.public_key of run 20260101-000000-000000-tiny, which made it\n" in told
    # A run that names no key does not do away with that of its model.
    shutil.rmtree(tmp_path / "outputs" / "runs" / "20260101-000000-000000-tiny")
    leave(1, "key-first", NAME)
    code, told = verify(capsys, "champion", "--model", NAME)
    assert (code, "version 1: key: a foreign key" in told) == (2, True)
    assert f"key: signing.public_key of run 20260102-000000-000000-tiny, the newest of {NAME}\n" in told


def test_a_directory_must_be_signed_by_the_key_of_the_version_that_it_came_from(
    promotions, promote, keys, leave, capsys, tmp_path, monkeypatch
):
    foreign = make_keys(tmp_path / "foreign")[1]
    promote("first", private=keys[0])
    copy = copied(promotions, tmp_path / "copy")
    assert verify(capsys, copy)[1].count("name yours with --public-key") == 1, "no run here, no key"
    leave(1, "key-first", NAME, f"signing.public_key={keys[1]}")
    leave(2, "key-other", NAME, f"signing.public_key={foreign}")
    leave(3, "key-another", "another", f"signing.public_key={foreign}")
    code, told = verify(capsys, copy)
    assert (code, told.count("holds")) == (0, 4)
    made = f"key: signing.public_key of run 20260101-000000-000000-tiny, which made it; these are the files of version 1 of {NAME}\n"
    assert made in told
    newest = f"key: signing.public_key of run 20260102-000000-000000-tiny, the newest of {NAME}; "
    with monkeypatch.context() as patch:
        patch.setattr(ModelRegistry, "versions", Mock(side_effect=TrackingError("MLflow is down")))
        code, told = verify(capsys, copy)
    assert (code, "key: a foreign key" in told) == (2, True)
    assert f"{newest}the registry cannot be reached (MLflow is down)\n" in told
    (copy / "model" / "model.safetensors").write_text("tampered")
    code, told = verify(capsys, copy)
    assert (code, "changed: model.safetensors" in told) == (2, True)
    assert f"{newest}no version of {NAME} has these files\n" in told


def test_a_directory_cannot_name_a_model_that_needs_no_key(promotions, promote, keys, leave, capsys, tmp_path):
    """Whoever writes the directory writes the name in its statement too."""
    promote("first", private=keys[0])
    copy = copied(promotions, tmp_path / "copy")
    required = make_keys(tmp_path / "required")[1]
    leave(1, "key-without", NAME)
    leave(2, "key-another", "another", f"signing.public_key={required}")
    code, told = verify(capsys, copy)
    assert (code, "key: a foreign key" in told) == (2, True)
    assert "key: signing.public_key of run 20260102-000000-000000-tiny, the latest" in told
    shutil.rmtree(tmp_path / "outputs" / "runs" / "20260101-000000-000000-tiny")
    code, told = verify(capsys, copy)
    assert (code, "key: a foreign key" in told) == (2, True)


def _other_evaluation(data: bytes) -> bytes:
    tree = json.loads(data)
    tree["models"]["trained"]["arithmetic"]["mean"] = 0.99
    return json.dumps(tree).encode()


FILES = "signature over the files: model.sig: other files than were signed"
ATTACKS = {
    "model/model.safetensors": (lambda data: b"tampered", f"{FILES} (changed: model.safetensors)"),
    "model/modeling.py": (lambda data: b"import os", f"{FILES} (added: modeling.py)"),
    "model/more/config.json": (lambda data: None, f"{FILES} (missing: more/config.json)"),
    "evaluations": (_other_evaluation, "evaluation: another evaluation"),
}


def test_what_was_changed_in_the_registry_is_refused_and_named(promotions, promote, keys, capsys):
    promote("first", private=keys[0])
    place = beside(promotions)
    for prefix, (change, said) in ATTACKS.items():
        (name,) = [name for name in place.list("") if name.startswith(prefix)] or [prefix]
        before = place.get_bytes(name)
        after = change(before)
        place.delete(name) if after is None else place.put_bytes(after, name)
        code, told = verify(capsys, "1", "--model", NAME, "--public-key", keys[1])
        assert code == 2
        assert f"ngrpo: model {NAME}: version 1: {said}" in told
        place.delete(name) if before is None else place.put_bytes(before, name)
    assert verify(capsys, "1", "--model", NAME, "--public-key", keys[1])[0] == 0


@pytest.mark.long
def test_an_interval_that_was_changed_in_the_history(promotions, promote, keys, capsys, objects):
    promote("first", private=keys[0])
    (name,) = [name for name in objects.list(f"promotions/{NAME}/history/")]
    entry = json.loads(objects.get_bytes(name))
    entry["comparison"]["interval"][0] -= 1.0
    objects.put_bytes(json.dumps(entry).encode(), name)
    code, told = verify(capsys, "champion", "--model", NAME, "--public-key", keys[1])
    assert code == 2
    assert "version 1: interval and decision: the history has 'promoted' with the interval [36.5000" in told


@pytest.mark.long
def test_signatures_of_another_version_and_a_foreign_key(promotions, promote, keys, capsys, tmp_path):
    promote("first", private=keys[0])
    promote("second", [6] * PROBLEMS, private=keys[0])
    for name in SEAL:
        beside(promotions, "2").put_bytes(beside(promotions, "1").get_bytes(name), name)
    code, told = verify(capsys, "2", "--model", NAME, "--public-key", keys[1])
    assert (code, "version 2: signature over the files: model.sig: other files" in told) == (2, True)
    foreign = make_keys(tmp_path / "foreign")[1]
    code, told = verify(capsys, "1", "--model", NAME, "--public-key", foreign)
    assert (code, "version 1: key: a foreign key" in told) == (2, True)
    (tmp_path / "empty.pub").write_text("")
    code, told = verify(capsys, "1", "--model", NAME, "--public-key", tmp_path / "empty.pub")
    assert (code, "empty.pub: empty" in told) == (2, True)
    code, told = verify(capsys, "9", "--model", NAME)
    assert (code, f"model {NAME} has no version 9" in told) == (2, True)


def test_a_run_that_changes_nothing_signs_the_evaluation_that_speaks_for_the_version_now(promotions, promote, keys):
    first = promote("first", private=keys[0])
    again = promote("first", [5] * PROBLEMS, private=keys[0])
    assert again["decision"] == "unchanged"
    envelope = json.loads(promotions.registry.file(promotions.registry.version("1"), STATEMENT))
    said = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    assert (said["decision"]["comparison"], said["evaluation"]["later"]) == (first["comparison"], True)
    version = promotions.registry.version("1")
    key = read_public_key(keys[1], "key")
    assert isinstance(
        verify_model(again["inputs"]["trained"] / "model", registered_evidence(promotions, version), key), Verified
    )
    promotions.rollback("worse on real traffic")
    links = verify_model(again["inputs"]["trained"] / "model", registered_evidence(promotions, version), key).links
    assert any("since then rolled back: worse on real traffic" in link.said for link in links)


def test_decisions_by_hand_are_signed_and_keep_what_the_run_said(promotions, promote, keys, objects, capsys, tmp_path):
    def said(number: str) -> dict:
        envelope = json.loads(promotions.registry.file(promotions.registry.version(number), STATEMENT))
        return json.loads(base64.b64decode(envelope["payload"]))["predicate"]

    signed_in_its_run = promote(
        "first", private=keys[0], variable={"NGRPO_IMAGES": '{"ngrpo_training": "i@sha256:0"}'}.get
    )
    promote("second", MIDDLE)
    first = said("1")
    by_hand = ("--preset", str(TINY), "--set", f"promotion.model_name={NAME}")
    key = ("--set", f"signing.private_key={keys[0]}")
    missing = ("--set", f"signing.private_key={tmp_path}/none.pem")
    assert cli.main(["promote", "2", *by_hand, *missing, "--override", "nicer"]) == 2
    assert "or decide unsigned: --set 'signing={}'" in capsys.readouterr().err
    assert cli.main(["promote", "2", *by_hand, *key, "--override", "nicer"]) == 0
    assert "version 2 is signed by the key sha256" in capsys.readouterr().out
    second = said("2")
    assert second["decision"] == {"decision": "promoted", "reason": "by hand: nicer", "comparison": None}
    assert (second["lineage"]["dataset"], second["data"]) == ("key-data", {}), "no run here made it"
    assert verify(capsys, "2", "--model", NAME, "--public-key", keys[1])[1].count("holds") == 6

    assert cli.main(["rollback", "worse", *by_hand, *key]) == 0
    assert said("2")["decision"]["decision"] == "rolled_back"
    for number in ("1", "2"):
        assert verify(capsys, number, "--model", NAME, "--public-key", keys[1])[1].count("holds") == 6, number
    assert said("1") == first
    assert cli.main(["rollback", "worse still", *by_hand, *key, "--yes"]) == 0
    assert said("1")["decision"]["comparison"] == signed_in_its_run["comparison"]
    kept = ("lineage", "code", "data", "base", "images")
    assert [said("1")[name] for name in kept] == [first[name] for name in kept]
    assert verify(capsys, "1", "--model", NAME, "--public-key", keys[1])[1].count("holds") == 6


@pytest.mark.long
def test_a_directory_as_the_registry_keeps_it(promotions, promote, keys, capsys, tmp_path):
    promote("first", private=keys[0])
    copy = copied(promotions, tmp_path / "copy")
    code, told = verify(capsys, copy, "--public-key", keys[1])
    assert (code, told.count("holds"), told.count("not checked")) == (0, 4, 2)
    (copy / "model" / "model.safetensors").write_text("tampered")
    code, told = verify(capsys, copy, "--public-key", keys[1])
    assert (code, "changed: model.safetensors" in told) == (2, True)
    code, told = verify(capsys, tmp_path / "nothing", "--public-key", keys[1])
    assert (code, "no model there" in told) == (2, True)


@pytest.mark.long
def test_a_key_that_cannot_sign_is_refused_before_anything_is_decided(promotions, promote, keys, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        promote("first", private=tmp_path / "missing.pem")
    closed = encrypted(Path(keys[0]), "secret words")
    with pytest.raises(ConfigError, match="the key is encrypted; put its password into NGRPO_SIGNING_PASSWORD"):
        promote("first", private=closed)
    assert promotions.registry.versions() == []
    decision = promote("first", private=closed, variable={PASSWORD: "secret words"}.get)
    assert decision["signed"]["key"] == read_public_key(keys[1], "key").fingerprint


# --- a base model ---------------------------------------------------------------------------------------------------------


def based(keys) -> RunConfig:
    overrides = [f"promotion.model_name={NAME}", *([f"signing.public_key={keys[1]}"] if keys else [])]
    return from_champion(load_config(TINY, overrides))


def test_a_champion_is_a_base_only_if_its_signature_holds(promotions, promote, keys, objects, tmp_path):
    promote("first")
    require_verified_base(based(None), objects.uri)
    with pytest.raises(VerificationError, match="version 1 is unsigned"):
        require_verified_base(based(keys), objects.uri)
    promote("first", private=keys[0])
    require_verified_base(based(keys), objects.uri)
    with pytest.raises(VerificationError, match="version 1: key: a foreign key"):
        require_verified_base(based(make_keys(tmp_path / "foreign")), objects.uri)
    place, key = beside(promotions), promotions.registry.by_alias(CHAMPION).tags["ngrpo.evaluation_key"]
    name = f"evaluations/{key}/evaluation.json"
    place.put_bytes(_other_evaluation(place.get_bytes(name)), name)
    with pytest.raises(VerificationError, match="version 1: evaluation: another evaluation"):
        require_verified_base(based(keys), objects.uri)


@pytest.mark.long
def test_a_base_that_was_swapped_with_its_digest_is_no_signed_one(promotions, promote, keys, objects):
    promote("first", private=keys[0])
    place = beside(promotions)
    manifest = json.loads(place.get_bytes("manifest.json"))
    config = based(keys)
    manifest["files"]["model/model.safetensors"]["sha256"] = "0" * 64
    place.put_bytes(json.dumps(manifest).encode(), "manifest.json")
    with pytest.raises(DataError, match="has no list of files of the digest"):
        require_verified_base(config, objects.uri)
    files = {name.removeprefix("model/"): entry["sha256"] for name, entry in manifest["files"].items()}
    tree = config.model_dump(mode="json")
    tree["model"]["source"]["digest"] = digest_of(files)
    with pytest.raises(VerificationError, match=r"signature over the files: .*changed: model.safetensors"):
        require_verified_base(validate(RunConfig, tree), objects.uri)


# --- a model that is served or exported ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_model_with_its_signatures_beside_it_is_verified_where_it_lies(
    promotions, promote, keys, objects, tmp_path, capsys
):
    directory = promote("first", private=keys[0])["inputs"]["trained"] / "model"
    around = Services(objects.uri, os.environ["MLFLOW_TRACKING_URI"], None, False)
    signing = SigningConfig(public_key=str(keys[1]))
    version = promotions.registry.version("1")
    found = NamedModel("champion", directory, model_digest(directory), version, NAME)
    require_verified(found, signing, around)
    exported = shutil.copytree(directory, tmp_path / "exported")
    for name, data in seal_of(found, around).items():
        (exported / name).write_bytes(data)
    code, told = verify(capsys, exported, "--public-key", keys[1])
    assert (code, told.count("holds")) == (0, 5)

    (directory / "model.safetensors").write_text("tampered")
    with pytest.raises(VerificationError, match=r"changed: model\.safetensors"):
        require_verified(found, signing, around)
    require_verified(found, SigningConfig(), around)
    unregistered = replace(found, version=None, name="a-run")
    assert seal_of(unregistered, around) == {}
    with pytest.raises(VerificationError, match="model a-run, which is in no registry, is unsigned"):
        require_verified(unregistered, signing, around)


# --- keys of a run --------------------------------------------------------------------------------------------------------


def test_a_run_whose_promotion_could_not_sign_is_refused_at_its_start(monkeypatch, tmp_path, keys, capsys):
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    assert cli.main(["run", "--preset", "tiny", "--set", f"signing.private_key={tmp_path}/no.pem"]) == 2
    assert "signing.private_key" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
    require_key(load_config(TINY, [f"signing.private_key={keys[0]}"]))


SECRET = "cluster.secrets.ngrpo-signing.NGRPO_SIGNING_KEY"


def test_pods_have_no_file_of_this_machine(keys):
    with pytest.raises(ConfigError, match="is a file of this machine, which pods do not have"):
        require_key_in_pods(load_config(TINY, [f"signing.private_key={keys[0]}"]))
    variable = "signing.private_key=$NGRPO_SIGNING_KEY"
    with pytest.raises(ConfigError, match="pods have no variable NGRPO_SIGNING_KEY"):
        require_key_in_pods(load_config(TINY, [variable]))
    require_key_in_pods(load_config(TINY, [variable, f"{SECRET}=signing.pem"]))


def test_the_key_is_in_the_pod_that_signs_and_in_no_other(keys):
    overrides = ["signing.private_key=$NGRPO_SIGNING_KEY", f"{SECRET}=signing.pem"]
    overrides += [f"cluster.secrets.ngrpo-signing.{PASSWORD}=password", "cluster.secrets.other.HF_TOKEN=token"]
    text = compile_whole(load_config(TINY, overrides), Images(GOLDEN / "images.lock"))
    spec, platform = yaml.safe_load_all(text)
    given = {
        name: {pair["envVar"] for secret in pod.get("secretAsEnv", []) for pair in secret["keyToEnv"]}
        for name, pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items()
    }
    assert given.pop("exec-model-promotion") == {"NGRPO_SIGNING_KEY", PASSWORD, "HF_TOKEN"}
    assert all(variables == {"HF_TOKEN"} for variables in given.values())
    variables = spec["deploymentSpec"]["executors"]["exec-model-promotion"]["container"]["env"]
    held = json.loads(next(each["value"] for each in variables if each["name"] == "NGRPO_IMAGES"))
    assert held["ngrpo_training"].count("@sha256:") == 1
