"""Build the images, push them, and write `images.lock`, which names them by digest: `make images REPOSITORY=registry.example.com/ngrpo`.

Beside the digests are the versions of the libraries in each image, which are part of the keys of results, and the bill of materials of
each (`images.sbom`).

The digest of an image is known once a registry has it, so there is no lock without a push.
"""

import argparse
import json
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from images.sbom import write_sbom

from ngrpo_kfp.pipelines.kubeflow.images import LIBRARIES, SBOM, requirements

IMAGES = Path(__file__).parent
ROOT = IMAGES.parent
LOCK = IMAGES / "images.lock"
NAMES = ("cpu", "gpu")


def build(name: str, tag: str, options: Sequence[str] = ()) -> None:
    """Build an image.

    Args:
        name: `cpu` or `gpu`.
        tag: What it is called on this machine.
        options: Further options of `docker build`.

    Raises:
        subprocess.CalledProcessError: Docker could not build it, and said why.
    """
    command = ["docker", "build", "--file", str(IMAGES / f"{name}.Dockerfile"), "--tag", tag]
    subprocess.run([*command, "--build-arg", f"REVISION={_revision()}", *options, str(ROOT)], check=True)


def main() -> None:
    """Build, push and lock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", help="where images are pushed to: the image is repository-cpu or repository-gpu")
    parser.add_argument("names", nargs="*", metavar="image", help="cpu or gpu (default: both)")
    parser.add_argument(
        "--build-arg", action="append", default=[], help="passed on to docker build, for example BASE=…"
    )
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"image {sorted(unknown)[0]!r}: choose from {', '.join(NAMES)}")
    locked = _locked()
    libraries, bills = locked.pop(LIBRARIES, {}), locked.pop(SBOM, {})
    for name in options.names or NAMES:
        tag = f"{options.repository}-{name}:{_revision()}"
        build(name, tag, [option for each in options.build_arg for option in ("--build-arg", each)])
        subprocess.run(["docker", "push", tag], check=True)
        inspected = subprocess.run(["docker", "image", "inspect", tag], check=True, capture_output=True, text=True)
        digests = json.loads(inspected.stdout)[0]["RepoDigests"]
        locked[name] = next(digest for digest in digests if digest.startswith(f"{options.repository}-{name}@"))
        libraries[name] = requirements(IMAGES, name)
        bills[name] = write_sbom(IMAGES, name, locked[name])
    LOCK.write_text(lock_text(locked, libraries, bills), encoding="utf-8")
    print(f"{LOCK.relative_to(ROOT)}:\n{LOCK.read_text(encoding='utf-8')}", end="")


def lock_text(
    locked: Mapping[str, str],
    libraries: Mapping[str, Mapping[str, str]],
    bills: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Return the text of `images.lock`.

    Args:
        locked: Address with digest of each image.
        libraries: Of each image, the version of each distribution in it.
        bills: Of each image, the file of its bill of materials and the sha256 of that.
    """
    tables = {LIBRARIES: dict(sorted(libraries.items())), SBOM: dict(sorted((bills or {}).items()))}
    return tomli_w.dumps({**dict(sorted(locked.items())), **{name: held for name, held in tables.items() if held}})


def _locked() -> dict[str, Any]:
    return tomllib.loads(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}


def _revision() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return described.stdout.strip()


if __name__ == "__main__":
    main()
