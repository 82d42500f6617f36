"""The components: conventions of kubeflow/pipelines-components, and agreement with the stages and with the pipeline."""

import ast
import sys
from pathlib import Path

import pytest
import yaml

from ngrpo.stages.declarations import STAGES
from ngrpo_kfp.pipelines.graph import COMPONENTS
from ngrpo_kfp.pipelines.post_training import post_training

COMPONENT_FOLDERS = Path(__file__).parents[2] / "components"
REFERENCE_PARAMETERS = {"config", "key", "code_version"}


def pipeline_inputs():
    """Trace the pipeline: by stage, the stage that each of its inputs comes from."""
    inputs = {}

    def trace(name, /, **sources):
        inputs[name] = sources
        return name

    post_training(trace)
    return inputs


@pytest.mark.parametrize("stage", STAGES)
def test_metadata_has_the_fields_of_the_ecosystem(stage):
    metadata = yaml.safe_load((COMPONENT_FOLDERS / stage / "metadata.yaml").read_text())
    assert list(metadata) == ["name", "stability", "dependencies", "tags", "lastVerified"]
    assert metadata["name"] == stage
    assert metadata["dependencies"]["kubeflow"][0]["name"] == "Pipelines"
    assert metadata["lastVerified"].tzinfo is not None
    assert (COMPONENT_FOLDERS / stage / "README.md").read_text().startswith(f"# {stage}\n")


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_imports_only_kfp_and_the_standard_library_at_its_top(stage):
    tree = ast.parse((COMPONENT_FOLDERS / stage / "component.py").read_text())
    modules = [
        name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]
    assert all(name.split(".")[0] in {"kfp", *sys.stdlib_module_names} for name in modules)


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_takes_what_the_pipeline_gives_it(stage):
    component = COMPONENTS[stage].component_spec
    inputs = pipeline_inputs()[stage]
    assert set(component.inputs) == REFERENCE_PARAMETERS | set(inputs) | {f"{name}_known" for name in inputs}
    for name, source in inputs.items():
        assert component.inputs[name].type == COMPONENTS[source].component_spec.outputs["artifact"].type
        assert component.inputs[name].optional
        assert component.inputs[f"{name}_known"].default == ""
    assert set(component.outputs) == {"artifact", "metrics"}


@pytest.mark.parametrize("stage", STAGES)
def test_the_registry_knows_the_settings_of_each_stage(stage):
    """Read from the source, for importing a stage imports all that it works with."""
    tree = ast.parse((COMPONENT_FOLDERS / "ngrpo" / "stages" / f"{stage}.py").read_text())
    (config,) = [
        node.value.id
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["CONFIG"]
    ]
    assert STAGES[stage].config.__name__ == config
