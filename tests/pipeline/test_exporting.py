"""`ngrpo export`: whole or not at all, verified, and loaded by the lines that are printed."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from mlflow import MlflowClient
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub_stub import hub_stub
from ngrpo.config import load_config
from ngrpo.errors import ConfigError, DataError
from ngrpo.signing.verification import VerificationError
from ngrpo.storage.digest import file_digests, model_digest
from ngrpo.tracking.model_registry import CHAMPION, KEY, ModelRegistry
from ngrpo_kfp.pipelines.local import exporting
from ngrpo_kfp.pipelines.local.exporting import Form, export_model
from ngrpo_kfp.pipelines.local.workspace import Workspace
from promoting import NAME, write_manifest
from signing_keys import make_keys
from tiny import save_tiny_model

pytestmark = pytest.mark.pipeline
TINY = Path(__file__).parents[2] / "pipelines" / "presets" / "tiny.toml"
pytest_plugins = ["mlflow_database"]


@pytest.fixture
def hidden_size() -> int:
    """Heads are a quarter of it; vLLM's build for processors has those of 32 numbers, and none of 16."""
    return 128


@pytest.fixture
def model(tmp_path, hidden_size) -> Path:
    return save_tiny_model(tmp_path / "artifact" / "model", hidden_size=hidden_size)


@pytest.fixture
def champion(database, objects, model, tmp_path, monkeypatch):
    """The tiny model as version 1, with a card."""
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", str(tmp_path / "artifacts"))
    registry = ModelRegistry(NAME)
    write_manifest(model.parent, "key", {})
    manifest = model.parent / "manifest.json"
    version = registry.register(model, manifest, digest=model_digest(model), tags={KEY: "key"})
    manifest.unlink()
    registry.add_card(version, "---\nlibrary_name: transformers\n---\n# The card of the version\n")
    registry.set_alias(CHAMPION, version.version)
    return version


@pytest.fixture
def export(champion, tmp_path):
    """Export the champion; return what was printed."""

    def function(target: Path, what: str = "champion", *, terminal: bool = False, **form) -> str:
        console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
        export_model(what, NAME, target, Form(**form), Workspace(tmp_path / "outputs"), console)
        return console.file.getvalue()

    return function


def lines(printed: str, library: str) -> str:
    """The lines of one library among those that were printed."""
    return printed.partition(f"# {library}")[2].partition("\n\n#")[0].partition("\n")[2]


def greedy(directory: Path, count: int) -> str:
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModelForCausalLM.from_pretrained(directory)
    chat = [{"role": "user", "content": "What is 7+4?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(ids["input_ids"], max_new_tokens=count, do_sample=False)
    return tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


# --- what is exported ---------------------------------------------------------------------------------------------------


def test_transformers_loads_it_by_the_lines_that_are_printed(export, model, tmp_path, capsys):
    printed = export(tmp_path / "there")
    assert printed.startswith(f"exported  champion, version 1 of {NAME}, sha256 {model_digest(model)[:12]}\n")
    capsys.readouterr()
    exec(lines(printed, "transformers"), {})
    assert capsys.readouterr().out.strip() == greedy(model, 256).strip()


def test_the_files_are_those_that_were_evaluated_and_the_card_says_how_to_use_them(export, model, tmp_path):
    target = tmp_path / "new" / "there"
    printed = export(target)
    found = file_digests(target)
    card = (target / "README.md").read_text()
    del found["README.md"]
    assert found == file_digests(model)
    assert card.startswith("---\nlibrary_name: transformers\n---\n# The card of the version\n")
    assert model_digest(model) in card
    assert lines(printed, "transformers").strip() in card
    assert [path.name for path in target.parent.iterdir()] == ["there"], "nothing is left beside it"


def test_an_unsigned_version_is_refused_where_a_key_is_asked_for(export, tmp_path):
    _, public = make_keys(tmp_path / "keys")
    run = Workspace(tmp_path / "outputs").new_run("20260101-000000-000000-tiny")
    settings = [f"signing.public_key={public}", f"promotion.model_name={NAME}"]
    (run / "config.json").write_text(load_config(TINY, settings).model_dump_json())
    with pytest.raises(VerificationError, match="version 1 is unsigned"):
        export(tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_signatures_go_with_the_files_that_they_are_about(export, monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "seal_of", lambda found, around: {"model.sig": found.digest.encode()})
    export(tmp_path / "same")
    export(tmp_path / "converted", dtype="bfloat16")
    assert (tmp_path / "same" / "model.sig").read_text() == model_digest(tmp_path / "artifact" / "model")
    assert not (tmp_path / "converted" / "model.sig").exists()


def test_an_empty_directory_is_filled_and_another_type_is_a_conversion(export, model, tmp_path):
    (tmp_path / "there").mkdir()
    converted = export(tmp_path / "there", dtype="bfloat16")
    same = export(tmp_path / "as-it-was")
    assert ('dtype="float32"' in same, "dtype=" in lines(converted, "vLLM")) == (True, False), (
        "vLLM rounds float32 else"
    )
    before, after = (load_file(directory / "model.safetensors") for directory in (model, tmp_path / "there"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value.to(torch.bfloat16), after[name]) for name, value in before.items())
    assert json.loads((tmp_path / "there" / "config.json").read_text())["dtype"] == "bfloat16"
    same = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    assert all((tmp_path / "there" / name).read_bytes() == (model / name).read_bytes() for name in same)
    assert "converted to bfloat16" in (tmp_path / "there" / "README.md").read_text()
    export(tmp_path / "same", dtype="float32")
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_the_adapter_alone(export, model, store, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(model.parent / "adapter")
    store.publish("ngrpo_training", "key", model.parent, config_digest="c", code_version="v", inputs={})
    printed = export(tmp_path / "there", adapter=True)
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in (tmp_path / "there").iterdir()
    }
    assert not list((tmp_path / "there").glob("model*.safetensors"))
    loaded: dict = {"BASE": str(model)}
    exec(lines(printed, "transformers"), loaded)
    assert isinstance(loaded["model"], PeftModel)
    ids = torch.tensor([[2, 7, 9]])
    assert torch.equal(loaded["model"](ids).logits, adapted.eval()(ids).logits)


def test_a_model_without_an_adapter(export, model, store, tmp_path):
    for _ in range(2):
        with pytest.raises(DataError, match=r"champion: no adapter is kept of it: .*; leave out --adapter"):
            export(tmp_path / "there", adapter=True)
        store.publish("ngrpo_training", "key", model.parent, config_digest="c", code_version="v", inputs={})
    assert not (tmp_path / "there").exists()


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("hidden_size", "for_vllm"), [(128, False), (64, True)])
def test_vllm_loads_it_by_the_lines_that_are_printed(export, model, tmp_path, for_vllm):
    printed = export(tmp_path / "there", for_vllm=for_vllm)
    assert "not on this machine" not in printed
    script = tmp_path / "lines.py"
    body = "\n".join(f"    {line}" for line in lines(printed, "vLLM").splitlines())
    script.write_text(f"if __name__ == '__main__':\n{body}\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert greedy(model, 256).strip() in map(str.strip, done.stdout.splitlines()), "beside what vLLM logs"


def test_what_vllm_cannot_serve_here_is_said(export, champion, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("ngrpo.data.vllm_classes.HEADS_ON_CPU", (64,))
    printed = export(tmp_path / "there")
    assert (
        "# not on this machine: the CPU build of vLLM has no attention with head size 32, only 64; `ngrpo export champion DIR "
        "--for-vllm` pads them with zeros, as `ngrpo serve` does\n" in printed
    )


@pytest.mark.parametrize("hidden_size", [64])
def test_heads_are_filled_up_for_vllm_where_asked_and_the_answers_stay(export, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(exporting, "seal_of", lambda found, around: {"model.sig": b"of the original"})
    printed = export(tmp_path / "wide", for_vllm=True)
    assert "not on this machine" not in printed
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["head_dim"] == 32
    assert not (tmp_path / "wide" / "model.sig").exists(), "it is not over these files"
    card = (tmp_path / "wide" / "README.md").read_text()
    assert "Attention heads were padded with zeros" in card
    assert model_digest(model) in card
    exec(lines(printed, "transformers"), {})
    assert capsys.readouterr().out.strip() == greedy(model, 256).strip()


def test_heads_that_are_wide_enough_stay_and_those_that_cannot_be_filled_up_are_said(
    export, model, tmp_path, monkeypatch
):
    export(tmp_path / "same", for_vllm=True)
    assert file_digests(model).items() <= file_digests(tmp_path / "same").items()
    monkeypatch.setattr("ngrpo.data.vllm_classes.HEADS_ON_CPU", (80,))
    with pytest.raises(
        DataError, match=r"^--for-vllm: .* head size 32.* padding its heads does not help; export it without"
    ):
        export(tmp_path / "there", for_vllm=True)
    assert not (tmp_path / "there").exists()


# --- whole or not at all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"dtype": "int8"}, "--dtype int8: not a dtype to convert to; choose one of bfloat16, float16, float32"),
        ({"dtype": "float16", "adapter": True}, "--dtype goes with the merged model"),
        ({"for_vllm": True, "adapter": True}, "--for-vllm goes with the merged model in its own type"),
        ({"hub": "name"}, "--hub 'name': not a repository name; write org/name"),
        ({"hub": "../name"}, "--hub '../name': not a repository name"),
        ({"hub": "org/name"}, "--hub org/name: no token; set HF_TOKEN"),
    ],
)
def test_what_cannot_be_exported_is_refused_first(form, said, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "services", lambda *_: pytest.fail("started"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError) as refusal:
        export_model("champion", NAME, tmp_path / "there", Form(**form), Workspace(tmp_path), Console())
    assert said in str(refusal.value)
    assert not (tmp_path / "there").exists()


def test_what_is_there_is_never_written_over(export, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for name, said in (("file", "a file; name a new directory"), ("full", "not empty; name a new directory")):
        with pytest.raises(ConfigError, match=said):
            export(tmp_path / name)
    for path in (tmp_path / "file", tmp_path / "full" / "file"):
        assert path.read_text() == "mine"


def test_a_directory_that_was_filled_meanwhile_stays(export, tmp_path, monkeypatch):
    written = exporting.exported_card

    def filling(*given):
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "file").write_text("theirs")
        return written(*given)

    monkeypatch.setattr(exporting, "exported_card", filling)
    with pytest.raises(ConfigError, match="there: cannot be written"):
        export(tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]
    assert not list(tmp_path.glob(".there*"))


def test_a_full_disk_leaves_nothing(export, tmp_path, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "shutil", SimpleNamespace(copyfile=full, rmtree=shutil.rmtree))
    with pytest.raises(ConfigError, match="there: cannot be written"):
        export(tmp_path / "there")
    assert not list(tmp_path.glob("*there*"))


def test_files_that_change_on_the_way_are_not_exported(export, tmp_path, monkeypatch):
    def tampering(source, target):
        shutil.copyfile(source, target)
        Path(target).write_bytes(Path(target).read_bytes()[::-1])

    monkeypatch.setattr(exporting, "shutil", SimpleNamespace(copyfile=tampering, rmtree=shutil.rmtree))
    with pytest.raises(DataError, match="changed while they were copied; export it again"):
        export(tmp_path / "there")
    assert not list(tmp_path.glob("*there*"))


# --- the hub (a stub on this machine) -----------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A hub that the real client of the hub talks to, with a token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with hub_stub() as stub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stub.address)
        yield stub


def test_the_hub_gets_it_in_one_commit_of_a_private_repository(export, model, tmp_path, hub, capfd):
    printed = export(tmp_path / "there", hub="org/name")
    assert [(made["organization"], made["name"], made["visibility"]) for made in hub.made] == [
        ("org", "name", "private")
    ]
    ((repository, message, files),) = hub.commits
    assert (repository, message) == ("org/name", f"{NAME}, champion, sha256 {model_digest(model)}")
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    assert list(hub.stored.values()) == [(model / "model.safetensors").read_bytes()], "weights go by LFS"
    assert hub.tokens == {"Bearer hf_secret"}
    assert "uploaded  org/name, which is private\n" in printed
    assert 'pipeline("text-generation", "org/name")' in printed
    assert "hf_secret" not in printed + "".join(capfd.readouterr())


@pytest.mark.parametrize("terminal", [False, True])
def test_an_upload_shows_the_bars_of_the_hub_on_a_terminal_alone(export, tmp_path, hub, capfd, monkeypatch, terminal):
    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "progress_bar_states", {})
    assert "uploading to org/name\n" in export(tmp_path / "there", terminal=terminal, hub="org/name")
    assert ("100%" in capfd.readouterr().err) == terminal


def test_a_repository_that_is_there_gets_a_commit_and_who_can_see_it_is_said(export, tmp_path, hub):
    hub.public.add("org/name")
    printed = export(tmp_path / "there", hub="org/name")
    assert (hub.made, [repository for repository, _, _ in hub.commits]) == ([], ["org/name"])
    assert "uploaded  org/name, which is public: it was there before\n" in printed


@pytest.mark.parametrize(
    ("part", "code"),
    [("/repos/create", 401), ("/repos/create", 403), ("/preupload/", 403), ("/lfs/", 403), ("/commit/", 409)],
)
def test_a_hub_that_refuses_leaves_the_model_here(export, tmp_path, hub, capfd, part, code):
    hub.refusals[part] = code
    with pytest.raises(DataError) as refusal:
        export(tmp_path / "there", hub="org/name")
    (line,) = str(refusal.value).splitlines()
    assert line.startswith("--hub org/name: not uploaded: ")
    assert str(code) in line
    assert f"the model is in {tmp_path / 'there'}: upload it again with `hf upload org/name" in line
    assert "hf_secret" not in line + "".join(capfd.readouterr())
    assert (tmp_path / "there" / "model.safetensors").exists()
    assert hub.commits == []
