"""The software bill of materials of an image, in CycloneDX 1.6: the Python packages of its lock files, with their hashes."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

_LOCKS = {"cpu": ("pip.txt", "cpu.txt", "weights.txt"), "gpu": ("pip.txt", "gpu.txt")}
"""The files that the Dockerfile of an image installs."""


def write_sbom(directory: Path, name: str, reference: str) -> dict[str, str]:
    """Write the bill of an image beside its lock files, and return its file and the sha256 of that, as `images.lock` names them.

    Args:
        directory: `images` of a checkout.
        name: `cpu` or `gpu`.
        reference: The image, `repository@sha256:digest`.

    Raises:
        subprocess.CalledProcessError: A lock file is none.
        ValueError: The bill is none by the schema of CycloneDX.
    """
    locked = "".join((directory / lock).read_text(encoding="utf-8") for lock in _LOCKS[name])
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "--output-reproducible", "--sv", "1.6", "-"]
    made = subprocess.run(command, input=locked, check=True, capture_output=True, text=True)
    bill: dict[str, Any] = json.loads(made.stdout)
    repository, _, digest = reference.partition("@")
    bill["metadata"]["component"] = {
        "type": "container",
        "bom-ref": "image",
        "name": repository,
        "version": digest,
        "hashes": [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}],
    }
    bill["dependencies"].append({"ref": "image", "dependsOn": [part["bom-ref"] for part in bill["components"]]})
    text = json.dumps(bill, indent=1, sort_keys=True) + "\n"
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise ValueError(f"the bill of image {name} is none of CycloneDX 1.6: {problem}")
    file = directory / f"{name}.cdx.json"
    file.write_text(text, encoding="utf-8")
    return {"file": file.name, "sha256": hashlib.sha256(text.encode()).hexdigest()}
