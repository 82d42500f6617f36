"""A stage is declared once (`ngrpo.config.stages`); all else that knows of it is held to that here.

And the components keep the conventions of kubeflow/pipelines-components.
"""

import ast
import runpy
import sys
from pathlib import Path

import pytest
import setuptools
import yaml

from ngrpo.stages.declarations import DECLARED
from ngrpo_kfp.pipelines.graph import COMPONENTS
from ngrpo_kfp.pipelines.post_training import post_training

ROOT = Path(__file__).parents[2]
PARAMETERS = ("config", "key", "code_version")


def text(*path: str) -> str:
    return ROOT.joinpath("components", *path).read_text(encoding="utf-8")


def pipeline_inputs() -> dict[str, dict[str, str]]:
    """Trace the pipeline: by stage, the stage that each of its inputs comes from."""
    inputs: dict[str, dict[str, str]] = {}

    def trace(name, /, **sources):
        inputs[name] = sources
        return name

    post_training(trace)
    return inputs


def call_of_execute(stage: str) -> dict[str, ast.expr]:
    """The call in a component's body: its first argument as `stage`, the others by name."""
    (call,) = [
        node
        for node in ast.walk(ast.parse(text(stage, "component.py")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "execute"
    ]
    return {"stage": call.args[0]} | {keyword.arg: keyword.value for keyword in call.keywords}


@pytest.mark.parametrize("stage", DECLARED.values(), ids=list(DECLARED))
def test_all_that_knows_of_a_stage_follows_from_its_declaration(stage):
    # Its module: what it takes, read from the source, for importing a stage imports all that it works with.
    (run,) = [
        node
        for node in ast.parse(text("ngrpo", "stages", f"{stage.name}.py")).body
        if isinstance(node, ast.FunctionDef) and node.name == "run"
    ]
    taken = [(argument.arg, ast.unparse(argument.annotation)) for argument in run.args.args]
    assert taken == [
        ("config", stage.config.__name__),
        ("inputs", "Mapping[str, Path]"),
        ("output", "Path"),
        ("context", "Context"),
    ]

    # The face of its component.
    face = COMPONENTS[stage.name].component_spec
    assert face.name == stage.name.replace("_", "-")
    assert list(face.inputs) == [*PARAMETERS, *(each for name in stage.inputs for each in (name, f"{name}_known"))]
    for name, source in stage.inputs.items():
        assert face.inputs[name].type == f"system.{DECLARED[source].artifact}@0.0.1"
        assert face.inputs[name].optional
        assert face.inputs[f"{name}_known"].default == ""
    assert {name: output.type for name, output in face.outputs.items()} == {
        "artifact": f"system.{stage.artifact}@0.0.1",
        "metrics": "system.Metrics@0.0.1",
    }

    # The body of its component.
    call = call_of_execute(stage.name)
    assert ast.literal_eval(call["stage"]) == stage.name
    inputs = dict(zip(map(ast.literal_eval, call["inputs"].keys), map(ast.unparse, call["inputs"].values), strict=True))
    assert inputs == {name: f"{name}_known or {name}.path" for name in stage.inputs}
    assert ("attempt" in call) == (stage.parallel or stage.wanted is not None), (
        "what knows Kubernetes: a job, a service"
    )

    # What is written of it.
    metadata = yaml.safe_load(text(stage.name, "metadata.yaml"))
    assert list(metadata) == ["name", "stability", "dependencies", "tags", "lastVerified"]
    assert metadata["name"] == stage.name
    assert metadata["dependencies"]["kubeflow"][0]["name"] == "Pipelines"
    assert metadata["lastVerified"].tzinfo is not None
    readme = text(stage.name, "README.md")
    assert readme.startswith(f"# {stage.name}\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.splitlines() if line.startswith("| ")]
    assert [(kind, name.strip("`")) for kind, name, _ in rows[1:]] == [
        *(("parameter", name) for name in PARAMETERS),
        *(("input", name) for name in stage.inputs),
        *(("output", name) for name in face.outputs),
    ]
    assert f"`{stage.config.__name__}`" in readme
    told = "".join(f" --input {name}=DIR" for name in stage.inputs)
    alone = f"python -m {stage.module} --preset pipelines/presets/tiny.toml{told} --output DIR\n"
    assert (alone in readme) == (stage.wanted is None), "without a cluster"


def test_the_stages_are_the_same_everywhere():
    assert pipeline_inputs() == {name: dict(stage.inputs) for name, stage in DECLARED.items()}
    folders = {path.parent.name for path in ROOT.glob("components/*/component.py")}
    assert folders == set(DECLARED), "a folder for each stage"


def test_every_folder_with_code_is_a_package(monkeypatch):
    said = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: said.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    folders = {
        path.parent.relative_to(ROOT).parts
        for path in (*ROOT.glob("components/**/*.py"), *ROOT.glob("pipelines/**/*.py"))
    }
    packages = {
        ".".join(parts[1:] if parts[:2] == ("components", "ngrpo") else ("ngrpo_kfp", *parts)) for parts in folders
    }
    no_code = {"ngrpo_kfp.components", "ngrpo_kfp.pipelines.presets", "ngrpo_kfp.pipelines.experiments"}
    assert len(said["packages"]) == len(set(said["packages"]))
    assert set(said["packages"]) == packages | no_code


@pytest.mark.parametrize("stage", DECLARED)
def test_a_component_imports_only_kfp_and_the_standard_library_at_its_top(stage):
    modules = [
        name
        for node in ast.parse(text(stage, "component.py")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]
    assert all(name.split(".")[0] in {"kfp", *sys.stdlib_module_names} for name in modules)
