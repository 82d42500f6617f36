"""The files of somebody's own job: a model directory, problems with `#### 5` answers, a benchmark, rewards and a chat template."""

import csv
import json
import random
from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REWARDS = '''
def short(completions, **kwargs):
    """The shorter, the better."""
    return [1.0 / (1 + len(completion[0]["content"])) for completion in completions]


def digits(completions, **kwargs):
    """At least one digit."""
    return [float(any(letter.isdigit() for letter in completion[0]["content"])) for completion in completions]
'''
POSITIONS = 128


def write_model(directory: Path, template: str | None = TEMPLATE) -> Path:
    """Write a tiny Llama with random weights and a byte-level BPE tokenizer, as `save_pretrained` does."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([question for question, _ in problems(200)], trainer)
    inner.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def problems(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return questions and worked answers that end in `#### 5`, no question twice."""
    pairs = [(first, second) for first in range(2, 40) for second in range(2, 40)]
    chosen = random.Random(seed).sample(pairs, count)
    return [
        (
            f"Tom has {a} apples and buys {b} more at the market. How many has Tom now?",
            f"{a} + {b} = {a + b}\n#### {a + b}",
        )
        for a, b in chosen
    ]


def write_csv(path: Path, rows: list[tuple[str, str]], columns: tuple[str, str] = ("question", "answer")) -> Path:
    """Write problems as a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])
    return path


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_job(folder: Path) -> Path:
    """Write all files of a job into a folder: `model/`, `mine.csv`, `test.jsonl`, `rewards.py`, `chat.jinja`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model")
    rows = problems(60)
    write_csv(folder / "mine.csv", rows[:48])
    held_out = [{"problem": question, "answer": worked.rpartition("#### ")[2]} for question, worked in rows[48:]]
    write_jsonl(folder / "test.jsonl", held_out)
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    (folder / "chat.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder
