"""The how-tos of `docs/library.md`, and a place where they run: what they name on the hub are directories there."""

import json
import re
from pathlib import Path

from tiny import WORDS, save_tiny_model

PAGE = Path(__file__).parents[1] / "docs" / "library.md"
MODEL, PROBLEMS = "Qwen/Qwen3-0.6B", "trl-lib/DeepMath-103K"
TRAIN, INDEX, GENERATE = "trainer = NGRPOTrainer(", "index = NeighborIndex.from_model(", "llm = mixing_llm("
"""A call that each of the how-tos has, and no other."""
WORDS_OF_MODEL = [*WORDS, "cat", "dog", "</think>", "What", "is", "?"]


def how_to(call: str) -> str:
    """Return the code of the how-to that has a call."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if call in block]
    return code


def prepare(directory: Path) -> None:
    """Write the model and the data set of the how-tos, tiny ones."""
    save_tiny_model(directory / MODEL, hidden_size=128, words=WORDS_OF_MODEL)
    (directory / PROBLEMS).mkdir(parents=True)
    rows = [
        {"prompt": [{"role": "user", "content": f"What is 1 + {number} ?"}], "solution": f"${1 + number}$"}
        for number in range(2)
    ]
    (directory / PROBLEMS / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
