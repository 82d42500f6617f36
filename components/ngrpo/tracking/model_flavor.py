"""The files that let MLflow load and serve a model: `MLmodel` with the flavor `transformers`, and its environment.

The layout is that of `mlflow.transformers.save_model`, with the directory of the evaluated model in place of a second copy: weights are
stored once, byte for byte as they were evaluated. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from mlflow.utils import PYTHON_VERSION

if TYPE_CHECKING:
    from mlflow.models.signature import ModelSignature

# `mlflow.models` is imported only where a model is written: it needs pandas, and commands that only decide start faster without.

MLMODEL = "MLmodel"
REQUIREMENTS = "requirements.txt"
_CONDA, _PYTHON_ENV = "conda.yaml", "python_env.yaml"
_TASK = "text-generation"
_TOKENIZER = Path("components") / "tokenizer"
"""Folder in which the flavor looks for a tokenizer."""
_LIBRARIES = ("mlflow", "torch", "transformers", "accelerate", "safetensors", "jinja2")
_WEIGHTS = "*.safetensors*"


def write_flavor(
    model: Path, directory: Path, folder: str, *, model_id: str, run_id: str | None, max_new_tokens: int
) -> None:
    """Write the files that go beside a model.

    Args:
        model: Model directory, as `save_pretrained` wrote it.
        directory: Empty directory to fill with `MLmodel`, the environment, and a copy of the tokenizer.
        folder: Name of the model's directory beside them.
        model_id: Id of the logged model.
        run_id: Run that logged it; None outside a run.
        max_new_tokens: Most tokens of a response, unless a request sets another limit.
    """
    from mlflow.models import Model

    settings: dict[str, Any] = json.loads((model / "config.json").read_bytes())
    described = Model(model_id=model_id, run_id=run_id, signature=_signature(max_new_tokens))
    described.model_size_bytes = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    described.add_flavor(
        "transformers",
        task=_TASK,
        instance_type="TextGenerationPipeline",
        pipeline_model_type=settings["architectures"][0],
        model_binary=folder,
        torch_dtype=f"torch.{settings.get('dtype', 'float32')}",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
        transformers_version=version("transformers"),
        code=None,
    )
    described.add_flavor(
        "python_function",
        loader_module="mlflow.transformers",
        python_version=PYTHON_VERSION,
        env={"conda": _CONDA, "virtualenv": _PYTHON_ENV},
        config={"return_full_text": False},
    )
    described.save(directory / MLMODEL)
    _write_environment(directory)
    shutil.copytree(model, directory / _TOKENIZER, ignore=shutil.ignore_patterns(_WEIGHTS))


def _signature(max_new_tokens: int) -> ModelSignature:
    """Return the model signature: text in, text out, and the parameters of generation, which is greedy by default."""
    from mlflow.models.signature import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec(DataType.string)])
    params = ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.long, max_new_tokens),
            ParamSpec("do_sample", DataType.boolean, False),
            ParamSpec("temperature", DataType.double, 1.0),
            ParamSpec("top_p", DataType.double, 1.0),
        ]
    )
    return ModelSignature(inputs=text, outputs=text, params=params)


def _write_environment(directory: Path) -> None:
    # Without the build (`2.13.0+cpu`), which depends on the serving machine.
    pinned = [f"{library}=={version(library).partition('+')[0]}" for library in _LIBRARIES]
    (directory / REQUIREMENTS).write_text("\n".join([*pinned, ""]), encoding="utf-8")
    environments = {
        _PYTHON_ENV: {"python": PYTHON_VERSION, "build_dependencies": ["pip"], "dependencies": [f"-r {REQUIREMENTS}"]},
        _CONDA: {
            "name": "mlflow-env",
            "channels": ["conda-forge"],
            "dependencies": [f"python={PYTHON_VERSION}", "pip", {"pip": pinned}],
        },
    }
    for name, tree in environments.items():
        (directory / name).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
