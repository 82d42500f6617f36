"""No progress bars in the log of a stage: its environment turns them off in every library that draws them."""

import os
import subprocess
import sys

import pytest

from ngrpo.stages.supervision import QUIET

# As they are drawn where nobody asks: with the library's own class, which says itself whether it is shown.
DRAW = """
from tqdm.auto import tqdm as plain
from huggingface_hub.utils import tqdm as hub
from datasets.utils import tqdm as data
from transformers.utils.logging import tqdm as models
own = {"disable": False}
for name, bar, shown in (("plain", plain, {}), ("hub", hub, own), ("data", data, own), ("models", models, {})):
    list(bar(range(3), desc=name, **shown))
"""


@pytest.mark.parametrize("quiet", [True, False])
def test_no_library_draws_a_bar(quiet):
    environment = {name: value for name, value in os.environ.items() if name not in QUIET} | (QUIET if quiet else {})
    drawn = subprocess.run([sys.executable, "-c", DRAW], env=environment, capture_output=True, text=True, check=True)
    assert [name in drawn.stderr for name in ("plain:", "hub:", "data:", "models:")] == [not quiet] * 4
