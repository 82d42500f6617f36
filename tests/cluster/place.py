"""Where the tests run: the cluster that KUBECONFIG names, and our settings for it."""

import base64
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from ngrpo.config import RunConfig, load_config
from ngrpo.errors import NGRPOError
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.client import namespace
from ngrpo_kfp.pipelines.kubeflow.images import Images

ROOT = Path(__file__).parents[2]
SETTINGS = "NGRPO_TEST_CLUSTER"
"""Environment variable: the file with the settings of `cluster`."""
DEV = ROOT / "k8s" / "overlays" / "dev" / "cluster.toml"
IMAGES = ROOT / "images" / "images.lock"


class NoClusterError(NGRPOError):
    """There is no cluster to test on."""


@dataclass(frozen=True)
class Place:
    """A cluster and our settings for it."""

    settings: Path
    """The file with the settings of `cluster`."""
    config: RunConfig
    """The preset `tiny` with these settings."""
    namespace: str
    """Namespace of the runs."""
    kubernetes: client.ApiClient
    """The way to its API."""
    images: Path = IMAGES
    """The images by digest."""

    def address(self, suffix: str) -> str:
        """Return an address that pods know, by the end of its variable's name.

        Raises:
            NGRPOError: The settings do not have it.
        """
        for name, value in self.config.cluster.environment.items():
            if name.endswith(suffix):
                return value
        raise NGRPOError(f"{self.settings}: environment names no {suffix}: add it, as pods know the service")

    def credentials(self) -> dict[str, str]:
        """Return the variables by which the command line opens the object store; their values come from the secrets that pods use.

        Raises:
            NGRPOError: A secret cannot be read.
        """
        found = {}
        api = client.CoreV1Api(self.kubernetes)
        for secret, variables in self.config.cluster.secrets.items():
            try:
                data = api.read_namespaced_secret(secret, self.namespace).data or {}
            except client.ApiException as error:
                raise NGRPOError(
                    f"secret {secret} of namespace {self.namespace} cannot be read ({error.status} {error.reason}): make it, or "
                    f"correct secrets in {self.settings}"
                ) from error
            for name, key in variables.items():
                if name.endswith(("_ACCESS_KEY_ID", "_SECRET_ACCESS_KEY")) and key in data:
                    # What is `NGRPO_S3_…` in pods is `AWS_…` on the command line.
                    found[name.replace("NGRPO_S3_", "AWS_", 1)] = base64.b64decode(data[key]).decode()
        return found


def find() -> Place:
    """Return the cluster that KUBECONFIG names.

    Raises:
        NGRPOError: There is none, it does not answer, or our settings for it are wrong: one line with the cure.
    """
    cure = "set KUBECONFIG, or make a cluster with k8s/kind/install.sh"
    if shutil.which("kubectl") is None:
        raise NoClusterError("NOT TESTED: kubectl is missing, which leads to the cluster's services; install it")
    try:
        api = config.new_client_from_config()
    except config.ConfigException as error:
        raise NoClusterError(f"NOT TESTED: there is no cluster ({error}): {cure}") from error
    server = api.configuration.host
    try:
        client.VersionApi(api).get_code(_request_timeout=10)
    except client.ApiException as error:
        raise NoClusterError(
            f"NOT TESTED: the cluster {server} refuses ({error.status} {error.reason}): {cure}"
        ) from error
    except HTTPError as error:
        reason = type(getattr(error, "reason", None) or error).__name__
        raise NoClusterError(f"NOT TESTED: the cluster {server} does not answer ({reason}): {cure}") from error
    settings = Path(os.environ.get(SETTINGS) or DEV)
    Images(IMAGES).reference("cpu")
    return Place(settings, load_config(PRESETS / "tiny.toml", [], settings), namespace(), api)
