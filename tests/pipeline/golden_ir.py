"""The golden intermediate representation of every preset; run as a script, writes it again (`make golden`).

One preset is stored whole. Of the others, whose pipelines are the same but for settings and resources, only the difference is
stored, which is what a reviewer wants to read. Left out is what changes without the pipeline changing: keys and code versions,
which follow every line of the library, and the description, which repeats the settings.
"""

import difflib
from pathlib import Path

import yaml

from ngrpo.config import load_config
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_whole, load_ir
from ngrpo_kfp.pipelines.kubeflow.images import Images

GOLDEN = Path(__file__).with_name("golden")
IMAGES = Images(GOLDEN / "images.lock")
CLUSTER = PRESETS.parent / "cluster.example.toml"
WHOLE = "paper-7b"
NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))


def compiled(preset: str, *overrides: str) -> tuple[dict, dict]:
    """Compile a preset for the example cluster; returns its two documents."""
    return load_ir(compile_whole(load_config(PRESETS / f"{preset}.toml", overrides, CLUSTER), IMAGES))


def golden_text(preset: str) -> str:
    """Return what is stored of a preset."""
    text = _stable(preset)
    if preset == WHOLE:
        return text
    difference = difflib.unified_diff(_stable(WHOLE).splitlines(), text.splitlines(), WHOLE, preset, lineterm="", n=0)
    return "\n".join(difference) + "\n"


def golden_path(preset: str) -> Path:
    """Return where it is stored."""
    return GOLDEN / (f"{preset}.yaml" if preset == WHOLE else f"{preset}.diff")


def _stable(preset: str) -> str:
    spec, platform = compiled(preset)
    del spec["pipelineInfo"]["description"]
    for task in spec["root"]["dag"]["tasks"].values():
        for name in ("code_version", "key"):
            constant = task["inputs"]["parameters"][name]["runtimeValue"]
            if not constant["constant"].startswith("{{"):
                constant["constant"] = f"({name})"
    return yaml.safe_dump_all([spec, platform], width=120)


if __name__ == "__main__":
    for name in NAMES:
        golden_path(name).write_text(golden_text(name), encoding="utf-8")
