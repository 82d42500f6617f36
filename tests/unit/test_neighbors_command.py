"""`ngrpo neighbors`: a text that is no token is refused before weights are read, and converted models are cached."""

import io
from contextlib import nullcontext

import pytest
from rich.console import Console

from ngrpo.data import packaged
from ngrpo.errors import DataError
from ngrpo_kfp.pipelines.cli import neighbors
from ngrpo_kfp.pipelines.cli.neighbors import show_neighbors
from ngrpo_kfp.pipelines.local.workspace import Workspace
from tiny import WORDS, save_tiny_model

KNOWN, OTHER = WORDS[-1], WORDS[-2]


@pytest.fixture
def converted(monkeypatch):
    """Let a tiny model stand in for the one in the package; return what was asked of it, whether with weights."""
    asked = []

    def write(source, directory, *, weights):
        asked.append(weights)
        save_tiny_model(directory)
        if not weights:
            for file in directory.glob("*.safetensors"):
                file.unlink()

    monkeypatch.setattr(packaged, "write", write)
    return asked


def shown(words, home):
    """Run the command; return what it prints."""
    console = Console(file=io.StringIO(), width=80)
    show_neighbors("smollm2", words, Workspace(home), console, count=2, metric="cosine")
    return console.file.getvalue()


def test_a_packaged_model_is_converted_once(converted, tmp_path):
    first = shown([KNOWN], tmp_path)
    assert converted.count(True) == 1
    assert repr(KNOWN) in first
    converted.clear()
    assert shown([KNOWN], tmp_path) == first
    assert shown([OTHER], tmp_path) != first
    assert converted == []


@pytest.mark.parametrize("word", ["no such words at all", ""])
def test_what_is_no_token_is_refused_before_weights_are_read(word, converted, tmp_path):
    with pytest.raises(DataError, match="not one token"):
        shown([word], tmp_path)
    assert True not in converted


@pytest.mark.parametrize("word", ["no such words at all", "no_such_word", "<|end|>", f"{KNOWN}{OTHER}"])
def test_what_is_no_token_is_refused_without_transformers(word, tmp_path, monkeypatch):
    """In the same words as with transformers, which reads the same file."""
    save_tiny_model(tmp_path / "model")

    def refusal() -> str:
        with pytest.raises(DataError) as refused:
            show_neighbors(str(tmp_path / "model"), [word], Workspace(tmp_path), Console(), count=2, metric="cosine")
        return str(refused.value)

    with monkeypatch.context() as patched:
        patched.setattr(neighbors, "_PLAIN", ())
        slowly = refusal()
    monkeypatch.setattr(neighbors, "_tokenizer", None)
    assert refusal() == slowly


@pytest.mark.parametrize(("word", "refused"), [("zzz", True), ("<think>", True), ("7+4", True), ("7", False)])
def test_a_generated_vocabulary_is_known_without_transformers(word, refused):
    with pytest.raises(DataError, match="not one of the") if refused else nullcontext():
        neighbors._refuse_early([word], neighbors._source("tiny"), None)


def test_a_conversion_that_was_killed_is_done_again(converted, tmp_path):
    shown([KNOWN], tmp_path)
    (matrix,) = tmp_path.glob("cache/converted_models/*/embedding.safetensors")
    matrix.rename(matrix.with_suffix(".partial"))
    converted.clear()
    assert repr(KNOWN) in shown([KNOWN], tmp_path)
    assert converted == [True]
