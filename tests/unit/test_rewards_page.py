"""The example of docs/rewards.md runs as it stands there, and its table of ready rewards is whole."""

import re
from pathlib import Path

from ngrpo.config import load_config
from ngrpo.config.rewards import READY
from ngrpo.grading.grader import Grader
from ngrpo.training.configured_rewards import configured_rewards

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rewards.md").read_text()


def test_the_example_runs(tmp_path):
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    rewards, lengths = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "rewards.py").write_text(rewards)
    (tmp_path / "lengths.py").write_text(lengths)
    (tmp_path / "mine.toml").write_text(f"{(ROOT / 'pipelines/presets/tiny.toml').read_text()}\n{table}")
    config = load_config(tmp_path / "mine.toml")
    columns = ("id", "prompt", "answer")
    with Grader() as grader:
        _, short = configured_rewards(config.training, config.rollout, grader, columns, tmp_path / "work")
        ids = [list(range(length)) for length in (5, 20, 30, 90)]
        nothing = [""] * len(ids)
        given = {"prompts": nothing, "completions": nothing, "completion_ids": ids, "id": nothing, "answer": nothing}
        assert short(**given) == [0, 0, -0.5, -1]


def test_every_ready_reward_and_option_is_there():
    rows = dict(
        re.findall(r"^\| `(\w+)` \| (.*)$", PAGE.partition("## Ready rewards")[2].partition("\n## ")[0], re.MULTILINE)
    )
    assert list(rows) == list(READY)
    for name, options in READY.items():
        for option in options.model_fields:
            assert f"`{option}" in rows[name], (name, option)
