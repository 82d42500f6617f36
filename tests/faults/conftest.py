"""What the tests of faults share with those of the pipeline."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))

pytest_plugins = ["mlflow_database"]
