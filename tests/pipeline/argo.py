"""A model of how Argo 4.0.5, as installed by Kubeflow Pipelines 2.17.0, handles the retries of a pipeline.

Each rule is named with the place in the sources that it was read from (KFP at 2.17.0, Argo at v4.0.5). What was seen on a real cluster, the
case in `tests/data/kfp-2.17.0`, holds the reader to the truth; it does not run Argo.
"""

import json
import math
import re
from dataclasses import dataclass

TEMPLATE_DEFAULTS = {"retryStrategy": {"limit": "2", "retryPolicy": "OnError"}}
"""`workflowDefaults.templateDefaults` of ConfigMap `workflow-controller-configmap`
(KFP: manifests/kustomize/third-party/argo/base/workflow-controller-configmap-patch.yaml)."""

_RETRIED = {"OnFailure": {"Failed"}, "OnError": {"Error"}, "Always": {"Failed", "Error"}}
_PARAMETER = re.compile(r"\{\{inputs\.parameters\.([\w-]+)\}\}")
_RETRY_PARAMETERS = ("retry-max-count", "retry-backoff-duration", "retry-backoff-factor", "retry-backoff-max-duration")


@dataclass(frozen=True)
class Verdict:
    """What Argo does after a try that did not succeed."""

    again: bool
    why: str
    starts: float = math.nan
    """Second at which the next try starts."""
    deadline: float = math.inf
    """Second at which the next try is killed."""


@dataclass(frozen=True)
class Retries:
    """A retry strategy in force."""

    limit: int
    policy: str
    wait: float = 0.0
    factor: int = 1
    longest: float = math.inf

    @classmethod
    def read(cls, strategy: dict) -> "Retries":
        """Read a strategy; raises ValueError where Argo would end the node with an error (operator.go: processNodeRetries)."""
        backoff = strategy.get("backoff", {})
        return cls(
            limit=int(strategy["limit"]),
            policy=strategy["retryPolicy"],
            wait=float(backoff.get("duration", 0)),
            factor=int(backoff.get("factor", 1)),  # intstr.Int32: a whole number, or an error
            longest=float(backoff.get("maxDuration") or math.inf),
        )

    def after(self, phase: str, *, tries: int, first_made: float, ended: float) -> Verdict:
        """Return what happens after a try (operator.go: processNodeRetries).

        Args:
            phase: How it ended: `Failed` or `Error`.
            tries: Tries so far.
            first_made: Second in which the pod of the first try was made: it may have waited in a queue for long.
            ended: Second in which the last try ended.
        """
        deadline = first_made + self.longest
        starts = ended + self.wait * self.factor ** (tries - 1)
        if ended > deadline:
            return Verdict(False, "Max duration limit exceeded")
        if starts > deadline:
            return Verdict(False, "Backoff would exceed max duration limit")
        if phase not in _RETRIED[self.policy]:
            return Verdict(False, "Node not set to be retried")
        if tries > self.limit:
            return Verdict(False, "No more retries left")
        return Verdict(True, "tried again", starts, deadline)


def phase(pod: dict | None) -> str:
    """Return the phase of a node whose pod ended (operator.go: podReconciliation, inferFailedReason).

    Args:
        pod: `status` of a pod that did not succeed; none for one that is gone.
    """
    if pod is None:
        return "Error"  # "pod deleted"
    if pod.get("message"):
        return "Failed"  # the kubelet's word, of an eviction for example
    order = {"main": 1, "wait": 2}
    containers = sorted(pod.get("containerStatuses", ()), key=lambda one: order.get(one["name"], 3))
    for container in [*pod.get("initContainerStatuses", ()), *containers]:
        if "waiting" in container["state"]:
            return "Error"
        code = container["state"].get("terminated", {}).get("exitCode", 0)
        if code and container["name"] in ("init", "wait"):
            return "Error"
        if code and (container["name"] == "main" or code not in (137, 143)):
            return "Failed"
    return "Failed"


def effective(workflow: dict, stage: str) -> list[dict]:
    """Return the retry strategies around the pod of a stage, outermost first: entrypoint, `root`, the stage's DAG, the pod's own.

    Under each template lie the installation's defaults, merged field by field (operator.go: mergedTemplateDefaultsInto); each that has a
    strategy is a node of type Retry with tries of its own. The node of a pod of the case is `…(0).root(0).sft-warm-start(0).executor(0)`.
    """
    templates = {template["name"]: template for template in workflow["spec"]["templates"]}
    name, parameters, found = workflow["spec"]["entrypoint"], {}, []
    for task_name in ("root", stage, "executor", None):
        template = _merged(TEMPLATE_DEFAULTS, templates[name])
        found.append(_resolved(template["retryStrategy"], parameters))
        if task_name is not None:
            (task,) = [task for task in template["dag"]["tasks"] if task["name"] == task_name]
            given = task.get("arguments", {}).get("parameters", ())
            name, parameters = task["template"], {one["name"]: _resolved(one["value"], parameters) for one in given}
    assert "container" in template
    return found


def strategies(workflow: dict, stage: str) -> list[Retries]:
    """Return the same, read."""
    return [Retries.read(strategy) for strategy in effective(workflow, stage)]


def most_pods(workflow: dict, stage: str) -> int:
    """Return how many pods a stage may have whose pods are lost time and again."""
    return math.prod(strategy.limit + 1 for strategy in strategies(workflow, stage))


def workflow_of(spec: dict) -> dict:
    """Return the Workflow that KFP makes of a pipeline, as far as retries go (KFP: argocompiler/container.go, dag.go).

    A task with a retry policy gets the templates `retry-…`, whose strategy has limit and backoff and nothing else: the pipeline cannot name
    the policy.
    """
    inputs = {name: f"{{{{inputs.parameters.{name}}}}}" for name in _RETRY_PARAMETERS}
    count, duration, factor, longest = inputs.values()
    strategy = {"limit": count, "backoff": {"duration": duration, "factor": factor, "maxDuration": longest}}
    tasks = [
        {
            "name": name,
            "template": ("retry-" if "retryPolicy" in task else "") + "system-container-executor",
            "arguments": {"parameters": retry_parameters(task)},
        }
        for name, task in spec["root"]["dag"]["tasks"].items()
    ]
    templates = [
        {"name": "entrypoint", "dag": {"tasks": [{"name": "root", "template": "root"}]}},
        {"name": "root", "dag": {"tasks": tasks}},
        _executor("system-container", []),
        {"name": "system-container-impl", "container": {}},
        _executor("retry-system-container", [{"name": name, "value": value} for name, value in inputs.items()]),
        {"name": "retry-system-container-impl", "container": {}, "retryStrategy": strategy},
    ]
    return {"spec": {"entrypoint": "entrypoint", "templates": templates}}


def retry_parameters(task: dict) -> list[dict]:
    """Return the arguments that the retry policy of a task becomes (container.go: getTaskRetryParametersWithValues)."""
    policy = task.get("retryPolicy")
    if policy is None:
        return []
    values = (
        str(policy.get("maxRetryCount", 0)),
        policy["backoffDuration"].removesuffix("s"),
        json.dumps(policy["backoffFactor"]).removesuffix(".0"),  # Go writes a whole number without a point
        policy["backoffMaxDuration"].removesuffix("s"),
    )
    return [{"name": name, "value": value} for name, value in zip(_RETRY_PARAMETERS, values, strict=True)]


def _executor(name: str, parameters: list[dict]) -> dict:
    task = {"name": "executor", "template": f"{name}-impl", "arguments": {"parameters": parameters}}
    return {"name": f"{name}-executor", "dag": {"tasks": [task]}}


def _merged(defaults: dict, template: dict) -> dict:
    """Return a template over its defaults: a strategic merge, which for maps goes field by field."""
    return defaults | {
        name: _merged(defaults[name], value)
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
        else value
        for name, value in template.items()
    }


def _resolved(value, parameters: dict):
    if isinstance(value, dict):
        return {name: _resolved(inner, parameters) for name, inner in value.items()}
    return _PARAMETER.sub(lambda found: parameters[found[1]], value)
