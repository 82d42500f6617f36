"""A try of the stage `deploy` in its pod, which changes services on the pod's cluster."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ngrpo.config import DeployConfig, RegisteredModel
from ngrpo.config.cluster import DEPLOYMENT_TOKEN
from ngrpo.contracts.deployment import REPLACED
from ngrpo.contracts.evaluation import Evaluation
from ngrpo.errors import ConfigError
from ngrpo.evaluation.equivalence import Equivalence
from ngrpo.stages import attempt
from ngrpo.stages.surroundings import IMAGES, Surroundings
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.components.serving.deployment import deploy
from ngrpo_kfp.components.serving.inference_service import inference_service, service_name, stored_positions
from ngrpo_kfp.components.serving.kubernetes_objects import KubernetesObjects

_OWN = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes mounts the credentials of a pod's service account."""


class Deployment:
    """Deploys on the cluster of this pod (`ngrpo.stages.context.Deployer`)."""

    def __init__(self, run: str):
        """Set the run.

        Args:
            run: Id of the run.
        """
        self._run = run

    def __call__(
        self,
        model: RegisteredModel,
        config: DeployConfig,
        *,
        evaluate: Callable[[str], Evaluation],
        decide: Callable[[Evaluation], Equivalence],
        say: Callable[[str], None],
    ) -> Equivalence:
        """Deploy a version, and decide whether to keep it."""
        account = Path(DEPLOYMENT_TOKEN)
        place = (account if account.exists() else _OWN) / "namespace"
        if not place.exists():
            raise ConfigError(f"deploy: {place} is missing, so this is not a pod: deploy with `ngrpo deploy`")
        namespace, image = (
            place.read_text(encoding="utf-8").strip(),
            json.loads(os.environ[IMAGES])["benchmark_evaluation"],
        )
        positions = stored_positions(model)
        manifest = inference_service(model, config, image, namespace=namespace, positions=positions)
        journal = f"{self._run}/{service_name(config, model.name)}.json"
        return deploy(
            manifest,
            KubernetesObjects(account),
            evaluate=evaluate,
            decide=decide,
            minutes=config.deployment.ready_minutes,
            say=say,
            inside=True,
            first_seen=lambda service: _first_seen(service, journal),
        )


def _first_seen(service: Mapping[str, Any] | None, journal: str) -> Mapping[str, Any] | None:
    """Store the service from before the first try of a run in the artifact store, because pods may be lost, and return it."""
    objects = ObjectStore(f"{Surroundings.from_environment().store.rstrip('/')}/{REPLACED}")
    if objects.put_bytes(json.dumps(service).encode(), journal, if_none_match=True):
        return service
    kept: Mapping[str, Any] | None = json.loads(objects.get_bytes(journal) or b"null")
    return kept


if __name__ == "__main__":
    given = sys.stdin.read()
    attempt.run(given, deploy=Deployment(json.loads(given)["key"]))
