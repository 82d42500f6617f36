"""What promotion reads back is damaged: one line that names it and the cure, nobody is promoted, and nothing is lost."""

import json
import re

import pytest
from mlflow import MlflowClient

from damage import damaged
from ngrpo.errors import DataError, NGRPOError, StoreError, TrackingError
from ngrpo.stages.model_promotion import decide_and_crown
from ngrpo.stages.opponent import judge
from ngrpo.storage.conditional_writes import require_conditional_writes
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import DamagedStateError
from ngrpo.tracking import cluster_parent_run
from ngrpo.tracking.promotions import Promotions
from ngrpo_kfp.pipelines.cli import app as cli
from promoting import MIDDLE, NAME, PROBLEMS, candidate, decide, settings, state

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]
BETTER = [6] * PROBLEMS


@pytest.fixture
def promotions(database, objects, tmp_path, monkeypatch):
    """Version 1 is the champion, version 2 beats it but has not met it."""
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", str(tmp_path / "artifacts"))
    decide(candidate(tmp_path / "inputs", "first", MIDDLE), tmp_path / "output")
    decide(candidate(tmp_path / "inputs", "second", BETTER), tmp_path / "output", min_gain=90.0)
    return Promotions.in_store(objects.uri, NAME)


@pytest.fixture
def ngrpo(promotions, capsys, tmp_path, monkeypatch):
    """Run a command and return its exit code, what it says, and its errors."""
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([*arguments, "--set", f"promotion.model_name={NAME}"])
        return code, *capsys.readouterr()

    return command


def one_line(error: BaseException, *parts: str) -> None:
    said = str(error)
    assert isinstance(error, NGRPOError), f"a raw error: {error!r}"
    assert "\n" not in said
    assert len(said) < 700
    for part in parts:
        assert part in said


def gate(promotions, tmp_path, **gate) -> dict:
    version = promotions.registry.version("2")
    evaluation = json.loads(promotions.registry.evaluation(version))
    return decide_and_crown(settings(**gate).promotion, promotions, version, evaluation, 0)


# --- the journal --------------------------------------------------------------------------------------------------------


def test_a_damaged_journal_promotes_nobody_and_is_made_again_from_the_history(promotions, tmp_path):
    store, key = ObjectStore(f"{promotions.artifacts}/promotions"), f"{NAME}/lock.json"
    good, before = store.get_bytes(key), state(promotions.registry)
    tree = json.loads(good)
    pending = json.loads(store.get_bytes(f"{NAME}/history/00000002.json"))
    damages = {
        **dict(damaged(good)),
        "empty state": json.dumps(tree | {"state": {}}).encode(),
        "a holder for ever": json.dumps(tree | {"holder": {"name": "x", "seconds": 1e12}}).encode(),
        **{
            f"state: {name}": json.dumps(tree | {"state": json.loads(data)}).encode()
            for name, data in damaged(json.dumps(tree["state"]).encode())
            if name.startswith(("without", "sequence is", "id is", "undo is", "pending is")) and b"NaN" not in data
        },
        **{
            f"pending: {name}": json.dumps(tree | {"state": tree["state"] | {"pending": json.loads(data)}}).encode()
            for name, data in damaged(json.dumps(pending).encode())
            if name.startswith(("without", "version is", "after is", "decision is")) and b"NaN" not in data
        },
    }
    for name, data in damages.items():
        store.put_bytes(data, key)
        with pytest.raises(NGRPOError) as error:
            promotions.rollback("why not")
        one_line(error.value, f"{store.uri}/{key}: damaged: ", "delete it")
        assert store.get_bytes(key) == data, name
    with pytest.raises(DamagedStateError):
        gate(promotions, tmp_path)
    assert state(promotions.registry) == before
    store.delete(key)
    assert gate(promotions, tmp_path)["decision"] == "promoted"
    assert [(entry["sequence"], entry["decision"]) for entry in promotions.history()] == [
        (1, "promoted"),
        (2, "kept"),
        (3, "promoted"),
    ]


def test_a_journal_of_the_history_knows_what_a_rollback_undoes(promotions, tmp_path):
    store, key = ObjectStore(f"{promotions.artifacts}/promotions"), f"{NAME}/lock.json"
    gate(promotions, tmp_path)
    journals = []

    def lost():
        kept = json.loads(store.get_bytes(key))["state"]
        store.delete(key)
        with promotions.turn():
            pass
        journals.append((kept, json.loads(store.get_bytes(key))["state"]))

    aliases = [state(promotions.registry)]
    lost()
    assert state(promotions.registry) == aliases[0]
    promotions.rollback("it was a mistake")
    assert state(promotions.registry) == {"champion": "1", "challenger": "2"}
    lost()
    assert state(promotions.registry) == {"champion": "1", "challenger": "2"}
    promotions.rollback("so was that")
    lost()
    with pytest.raises(TrackingError, match="nothing to roll back"):
        promotions.rollback("once too often")
    assert all(kept == made for kept, made in journals)


# --- the history --------------------------------------------------------------------------------------------------------


def test_a_damaged_entry_is_left_out_of_the_history_and_rolls_nothing_back(promotions, ngrpo):
    store, key = ObjectStore(f"{promotions.artifacts}/promotions"), f"{NAME}/history/00000001.json"
    good, before = store.get_bytes(key), state(promotions.registry)
    damages = dict(damaged(good)) | {"another entry": store.get_bytes(f"{NAME}/history/00000002.json")}
    del damages["comparison is {'x': [1]}"]  # evidence may be anything
    for number, (name, data) in enumerate(damages.items()):
        store.put_bytes(data, key)
        with pytest.raises(NGRPOError) as error:
            promotions.rollback("why not")
        one_line(error.value, f"{store.uri}/{key}: damaged: ", "promote a version instead")
        if number % 16 == 0:  # a command takes half a second
            code, out, err = ngrpo("history", "tiny")
            assert code == 0
            assert err.count("\n") == 1
            assert err.startswith(f"history: {store.uri}/{key}: damaged: ")
            assert [line.split("│")[1].strip() for line in out.splitlines() if "kept" in line] == ["2"]
        else:
            assert [entry["sequence"] for entry in promotions.history()] == [2], name
    assert state(promotions.registry) == before
    store.put_bytes(b"what is this", f"{NAME}/history/notes.txt")
    store.put_bytes(good, key)
    assert [entry["sequence"] for entry in promotions.history()] == [1, 2]


# --- evaluations and manifests ------------------------------------------------------------------------------------------


def evaluation_damages(good: bytes):
    yield from damaged(good)
    tree = json.loads(good)
    result = tree["models"]["trained"]["arithmetic"]
    for name, data in damaged(json.dumps(result).encode()):
        if name.startswith(("without per_problem", "without n_samples", "mean is", "per_problem is", "n_samples is")):
            trained = {"arithmetic": json.loads(data)}
            yield f"result: {name}", json.dumps(tree | {"models": tree["models"] | {"trained": trained}}).encode()
    for name, change in {
        "infinite": {"mean": 1e308 * 10},
        "no problems": {"per_problem": {}, "per_problem_maj": {}},
        "more correct than samples": {"per_problem": dict.fromkeys(result["per_problem"], 9)},
        "fewer than none": {"per_problem": dict.fromkeys(result["per_problem"], -1)},
        "other problems": {"per_problem_maj": {"q": 1.0}},
    }.items():
        trained = {"arithmetic": result | change}
        yield name, json.dumps(tree | {"models": tree["models"] | {"trained": trained}}).encode()


OPTIONAL = re.compile(r"without (protocols|weights|answers|statistics)")


def test_a_champion_with_a_damaged_evaluation_stays_until_a_person_decides(promotions, tmp_path):
    (path,) = [
        path
        for path in (tmp_path / "artifacts" / "models").rglob("evaluation.json")
        if b'"trained": {"arithmetic": {"mean": 0.5,' in path.read_bytes()
    ]
    registry, before = promotions.registry, state(promotions.registry)
    second = registry.version("2")
    theirs = json.loads(registry.evaluation(second))
    for name, data in evaluation_damages(path.read_bytes()):
        if OPTIONAL.match(name):
            continue
        path.write_bytes(data)
        verdict = judge(
            settings().promotion, registry, promotions.artifacts, second, theirs, registry.by_alias("champion"), 0
        ).verdict
        assert (verdict["decision"], verdict["comparison"]) == ("kept", None), name
        assert verdict["reason"].startswith("the evaluation of the champion, version 1: damaged: "), name
        assert "run the pipeline that made it again" in verdict["reason"]
    decision = gate(promotions, tmp_path)
    assert (decision["decision"], decision["comparison"]) == ("kept", None)
    assert state(promotions.registry) == before


def test_a_candidate_with_a_damaged_evaluation_is_refused_in_one_line(promotions, ngrpo, tmp_path):
    inputs = candidate(tmp_path / "inputs", "third", BETTER)
    path, before = inputs["evaluation"] / "evaluation.json", state(promotions.registry)
    for name, data in evaluation_damages(path.read_bytes()):
        if not OPTIONAL.match(name):
            path.write_bytes(data)
            with pytest.raises(DamagedStateError) as error:
                decide(inputs, tmp_path / "output")
            one_line(error.value, f"{path}: damaged: ", "`ngrpo rerun benchmark_evaluation`")
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        decide(inputs, tmp_path / "output")
    for path in (tmp_path / "artifacts" / "models").rglob("evaluation.json"):
        path.write_text('{"models": {"trained": NaN}}')
    code, _, err = ngrpo("promote", "2", "tiny")
    assert code == 2
    assert err.startswith(f"ngrpo: model {NAME}: the evaluation of version 2: damaged: it is not JSON (NaN ")
    assert state(promotions.registry) == before
    assert len(promotions.registry.versions()) == 2


def test_damaged_manifests_are_said(promotions, tmp_path):
    before = state(promotions.registry)
    champion = promotions.registry.by_alias("champion")
    (path,) = [
        path.parents[1] / "manifest.json"
        for path in (tmp_path / "artifacts" / "models").glob("*/artifacts/model/model.safetensors")
        if path.read_text() == "first"
    ]
    good = path.read_bytes()
    for name, data in damaged(good):
        if name.startswith(("without", "stage", "key", "config", "code", "inputs")) and name != "without files":
            continue  # nothing asks for them
        path.write_bytes(data)
        (said,) = promotions.registry.missing(champion)
        assert said.startswith("manifest.json: damaged: "), name
    assert "are gone (manifest.json: damaged: " in gate(promotions, tmp_path)["reason"]
    path.write_bytes(good)
    inputs = candidate(tmp_path / "inputs", "third", BETTER)
    for role in ("trained", "evaluation"):
        path = inputs[role] / "manifest.json"
        good = path.read_bytes()
        for name, data in damaged(good):
            if name.endswith((" stage", " config_digest", " files")) or name.startswith(("stage", "config", "files")):
                continue
            path.write_bytes(data)
            with pytest.raises(DamagedStateError) as error:
                decide(inputs, tmp_path / "output")
            one_line(error.value, f"{path}: damaged: ", "run the stage that made it again")
        path.write_bytes(good)
    assert state(promotions.registry) == before


def test_a_key_that_is_none_leads_nowhere(promotions):
    client = MlflowClient()
    for key in ("../../1", "", "/etc/passwd", "a b", "\x00"):
        client.set_model_version_tag(NAME, "1", "ngrpo.evaluation_key", key)
        assert promotions.registry.evaluation(promotions.registry.version("1")) is None


def test_a_damaged_note_of_the_run_on_a_cluster_is_said(database, objects, tmp_path):
    for data in (b"", b"\xff\xfe", b"{}", b"a b", b"x" * 65, b"run\n"):
        objects.put_bytes(data, "mlflow_runs/p1")
        with pytest.raises(DamagedStateError) as error, cluster_parent_run.parent_on_cluster("p1", "stage", objects):
            pass
        one_line(error.value, f"{objects.uri}/mlflow_runs/p1: damaged: ", "delete it")
    objects.delete("mlflow_runs/p1")
    with cluster_parent_run.parent_on_cluster("p1", "stage", objects) as run:
        assert objects.get_bytes("mlflow_runs/p1").decode() == run


# --- reasons ------------------------------------------------------------------------------------------------------------

NO_REASONS = [
    "",
    " ",
    "\t\n",
    "\u200b",
    "\u00a0\u3000",
    "\u2060\ufeff",
    "a\x00b",
    "a\nb",
    "a\x1b[31mb",
    "a\x7f",
    "\udcff",
    "a\u2028b",
    "\u202eabc",
    "x" * 1001,
]


def test_a_reason_says_something(promotions, ngrpo):
    promotions.history()
    before, history = state(promotions.registry), promotions.history()
    for text in NO_REASONS:
        for command in (("rollback", text, "tiny"), ("promote", "2", "tiny", "--override", text)):
            code, out, err = ngrpo(*command)
            assert (code, out) == (2, ""), command
            assert re.fullmatch(
                r"ngrpo: (argument .* is not UTF-8.*|(rollback|--override): the reason .*); .+\n", err
            ), err
        with pytest.raises(NGRPOError):
            promotions.rollback(text)
        with pytest.raises(NGRPOError):
            decide_and_crown(settings().promotion, promotions, promotions.registry.version("2"), {}, 0, override=text)
    assert (state(promotions.registry), promotions.history()) == (before, history)
    assert promotions.rollback("  Ü: it answers in verse 🙂 ")["reason"] == "Ü: it answers in verse 🙂"


# --- a store that ignores conditions ------------------------------------------------------------------------------------


class Careless:
    """A boto3 client whose service ignores some headers."""

    def __init__(self, client, *ignored: str):
        self._client, self._ignored = client, ignored

    def __getattr__(self, name):
        return getattr(self._client, name)

    def put_object(self, **arguments):
        return self._client.put_object(**{key: v for key, v in arguments.items() if key not in self._ignored})


@pytest.mark.parametrize(
    ("ignored", "named"),
    [(("IfNoneMatch",), "If-None-Match"), (("IfMatch",), "If-Match"), (("IfMatch", "IfNoneMatch"), "If-None-Match")],
)
def test_nobody_is_promoted_where_conditions_are_ignored(promotions, tmp_path, ignored, named):
    good = ObjectStore(f"{promotions.artifacts}/promotions")
    store = ObjectStore(good.uri, client=Careless(good._client, *ignored))
    careless, before = Promotions(promotions.registry, store), state(promotions.registry)
    keys = good.list()
    for question in (lambda: gate(careless, tmp_path), lambda: careless.rollback("why not")):
        with pytest.raises(StoreError) as error:
            question()
        one_line(
            error.value, f"ignores {named}, so that two processes", "use a service that supports conditional writes"
        )
    assert state(promotions.registry) == before
    assert good.list() == keys, "the object that was tried on is gone"


def test_a_store_that_keeps_conditions_is_asked_once(promotions, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ngrpo.tracking.promotions.require_conditional_writes",
        lambda *arguments: asked.append(require_conditional_writes(*arguments)),
    )
    for _ in range(3):
        with promotions.turn():
            pass
    assert asked == [None]
