"""The embedding matrix of a model is read alone, from every layout of safetensors files; the terminal shows its neighbors."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ngrpo.config import HubModel
from ngrpo.data.embedding import load_embedding, read_embedding
from ngrpo.errors import DataError
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.pipelines.cli import app as cli
from tiny import SPECIAL, WORDS, save_tiny_model


def model(**settings: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, **shape, **settings))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", ["1GB", "10KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_file_or_shards_tied_or_not(tmp_path, tied, size, dtype):
    policy = model(tie_word_embeddings=tied).to(dtype)
    policy.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "10KB")
    embedding = read_embedding(tmp_path)
    assert embedding.dtype == dtype
    assert torch.equal(embedding, policy.get_input_embeddings().weight)


def test_a_tied_model_may_hold_its_matrix_as_the_output(tmp_path):
    policy = model(tie_word_embeddings=True)
    policy.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, tmp_path / "model.safetensors")
    assert torch.equal(read_embedding(tmp_path), policy.get_input_embeddings().weight)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(DataError, match="no input embedding"):
        read_embedding(tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def garble(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 40) + b"x" * 100)


def quantize(path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.ones(4, 4, dtype=torch.int8)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "ends within model.embed_tokens.weight"),
        (garble, "damaged"),
        (lambda path: path.write_bytes(b""), "it has no header"),
        (Path.unlink, "model.safetensors is missing"),
        (quantize, "not a matrix of floating-point numbers"),
        (lambda path: save_file({"other": torch.ones(2)}, path), "no input embedding"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(tmp_path, damage, message):
    save_file({"model.embed_tokens.weight": torch.ones(100, 16)}, tmp_path / "model.safetensors")
    damage(tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=message) as error:
        read_embedding(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.pipeline
def test_from_object_storage_only_the_matrix_is_read(objects: ObjectStore, tmp_path, monkeypatch):
    policy = save_tiny_model(tmp_path / "model")
    for path in policy.iterdir():
        objects.put_file(path, path.name)
    read = []
    stock = ObjectStore.get_range

    def counting(self, key, start, length):
        data = stock(self, key, start, length)
        read.append((key, len(data or b"")))
        return data

    monkeypatch.setattr(ObjectStore, "get_range", counting)
    source = HubModel(kind="hub", id=objects.uri, revision="0" * 40)
    embedding, tokenizer = load_embedding(source, tmp_path / "copy")
    assert torch.equal(embedding, read_embedding(policy))
    assert len(tokenizer) == len(embedding)
    assert not (tmp_path / "copy" / "model.safetensors").exists()
    assert 4 * embedding.numel() < sum(size for _, size in read) < (policy / "model.safetensors").stat().st_size / 4
    assert objects.get_range("gone", 0, 8) is None


def test_neighbors_in_the_terminal(tmp_path, capsys):
    save_tiny_model(tmp_path)
    assert cli.main(["neighbors", str(tmp_path), "7", "stop", "--count", "3"]) == 0
    embedding = torch.nn.functional.normalize(read_embedding(tmp_path).double(), dim=1)[len(SPECIAL) :]
    shown = capsys.readouterr().out
    for word in ("7", "stop"):
        similarity = embedding @ embedding[WORDS.index(word)]
        expected = similarity.argsort(descending=True)[1:4].tolist()
        line = next(line for line in shown.splitlines() if line.strip().startswith(repr(word)))
        assert line.split()[1::2] == [repr(WORDS[other]) for other in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["7 8"], "not one token of this model but 2 ('7', '8')"),
        (["<eos>"], "special, added and unused tokens have no neighbors"),
        (["7", "--count", "99"], "set neighbors.candidates to at most 43"),
        (["7", "--metric", "near"], "metric"),
    ],
)
def test_what_the_terminal_refuses(tmp_path, capsys, arguments, message):
    save_tiny_model(tmp_path)
    assert cli.main(["neighbors", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys):
    assert cli.main(["neighbors", "no/such", "7"]) == 2
    assert "MODEL no/such: no such directory, and no preset either" in capsys.readouterr().err
