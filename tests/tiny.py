"""A tiny model and tokenizer for tests: random weights, large enough in scale that mixing changes what is generated."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.strategies import Gaussian, Gumbel, Neighbor, Soft
from ngrpo.mixing.strategy import Strategy
from ngrpo.neighbors.index import NeighborIndex

SPECIAL = ["<pad>", "<eos>", "<user>", "<assistant>"]
WORDS = [*(str(number) for number in range(40)), "+", "-", "=", "stop"]
EOS, PAD = 1, 0
MARKER = len(SPECIAL) + WORDS.index("stop")


def eligible() -> torch.Tensor:
    mask = torch.ones(len(SPECIAL) + len(WORDS), dtype=torch.bool)
    mask[: len(SPECIAL)] = False
    return mask


def save_tiny_model(directory: Path, seed: int = 0, hidden_size: int = 64, words: Sequence[str] = WORDS) -> Path:
    """Write a random Llama model and a word-level tokenizer with a chat template; vLLM needs a hidden size of 128."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=SPECIAL[2:]
    )
    fast.chat_template = (
        "{% for message in messages %}{% if message.role == 'user' %}<user> {{ message.content }}"
        "{% else %} <assistant> {{ message.content }} <eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} <assistant>{% endif %}"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


def end_marker(text: str | None) -> EndMarker | None:
    """The marker that ends mixing at a text of the tiny tokenizer, which puts a space between two words."""
    return None if text is None else EndMarker.of(text, [f" {word}".encode() for word in [*SPECIAL, *WORDS]])


STRATEGIES: dict[str, Strategy] = {
    "neighbor": Neighbor(3),
    "gaussian": Gaussian(0.5),
    "sampled": Neighbor(3, label="sampled"),
    "release": Neighbor(3, label="sampled", weights="release"),
    "soft": Soft(4),
    "soft-sampled": Soft(4, label="sampled"),
    "gumbel": Gumbel(4),
    "gumbel-choice": Gumbel(4, noise_in_weights=False),
}
"""Every way to mix that comes with us."""
FURTHER = [name for name in STRATEGIES if name not in ("neighbor", "gaussian")]


def mixer_for(model, strategy: str | Strategy, rate: float, marker: str | None = None, version: int = 0) -> Mixer:
    """A mixer over the model's own embedding."""
    index = NeighborIndex.build(
        model.get_input_embeddings().weight, eligible(), candidates=6, block_rows=64, version=version
    )
    return Mixer(
        strategy=STRATEGIES[strategy] if isinstance(strategy, str) else strategy,
        rate=rate,
        neighbors=index.neighbors,
        eligible=index.eligible,
        index_version=index.version,
        end_marker=end_marker(marker),
    )
