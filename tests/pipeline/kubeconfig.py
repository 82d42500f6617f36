"""The file by which clients of Kubernetes find a stub of a cluster."""

from pathlib import Path

import yaml


def write_kubeconfig(home: Path, address: str) -> None:
    """Write `.kube/config` below a home directory; it names the cluster at an address."""
    path = home / ".kube" / "config"
    path.parent.mkdir()
    path.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": address}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {}}],
                "current-context": "c",
            }
        )
    )
