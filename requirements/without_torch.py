"""Print what an installed package requires, extras apart, but for torch and its companions: `python without_torch.py <package>`."""

import re
import sys
from importlib.metadata import requires

_LEFT_OUT = re.compile(r"torch|intel-openmp")

for requirement in requires(sys.argv[1]) or ():
    if "extra ==" not in requirement and not _LEFT_OUT.match(requirement):
        print(requirement)
