"""The bills of materials of the images: every package of the lock files with its hashes, by the schema of CycloneDX."""

import hashlib
import json
import re
import shutil
import tomllib

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from images.build import IMAGES, lock_text
from images.sbom import write_sbom

from ngrpo_kfp.pipelines.kubeflow.images import Images, requirements

REFERENCE = f"registry.example.com:5000/team/ngrpo-cpu@sha256:{'0' * 64}"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("images")
    for name in ("pip.txt", "weights.txt"):
        shutil.copy(IMAGES / name, directory)
    # A few packages of the lock: all of them take a while.
    packages = re.split(r"\n(?=\S)", (IMAGES / "cpu.txt").read_text())
    (directory / "cpu.txt").write_text("\n".join(packages[:8]) + "\n")
    return directory, write_sbom(directory, "cpu", REFERENCE)


def test_a_bill_is_one_of_cyclonedx_and_names_the_image(written):
    text = (written[0] / "cpu.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    image = Bom.from_json(json.loads(text)).metadata.component
    assert (image.type.value, f"{image.name}@{image.version}") == ("container", REFERENCE)


def test_a_bill_has_every_package_of_the_lock_files_with_its_hashes(written):
    bill = json.loads((written[0] / "cpu.cdx.json").read_text())
    found = {part["name"]: part for part in bill["components"]}
    expected = requirements(written[0], "cpu") | {"pip": "26.3"}
    assert {name: part["version"].partition("+")[0] for name, part in found.items()} == expected
    locked = {name: set(hashes) for name, hashes in packages((written[0] / "cpu.txt").read_text())}
    assert len(locked) == 8
    assert {name: hashes_of(found[name]) for name in locked} == locked


def packages(text):
    """Each package of a lock file with its hashes."""
    for name, block in re.findall(r"^(\S+?)==(.*(?:\n .*)*)", text, re.MULTILINE):
        yield name, re.findall(r"--hash=sha256:([0-9a-f]{64})", block)


def hashes_of(part) -> set[str]:
    return {each["content"] for reference in part["externalReferences"] for each in reference.get("hashes", ())}


def test_the_lock_names_a_bill_with_its_digest_and_is_read_as_before(written, tmp_path):
    directory, bill = written
    assert bill == {
        "file": "cpu.cdx.json",
        "sha256": hashlib.sha256((directory / "cpu.cdx.json").read_bytes()).hexdigest(),
    }
    lock = tmp_path / "images.lock"
    lock.write_text(lock_text({"cpu": REFERENCE}, {"cpu": {"torch": "2.13.0"}}, {"cpu": bill}))
    assert tomllib.loads(lock.read_text())["sbom"] == {"cpu": bill}
    images = Images(lock)
    assert images.reference("cpu") == REFERENCE
    assert images.libraries("cpu") == {"torch": "2.13.0"}
    with pytest.raises(Exception, match=r"image 'gpu' is not in .* \(it has: cpu\)"):
        images.reference("gpu")


def test_a_bill_is_the_same_each_time(written, tmp_path):
    shutil.copytree(written[0], tmp_path / "again")
    assert write_sbom(tmp_path / "again", "cpu", REFERENCE) == written[1]


@pytest.mark.long
@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_whole_lock_of_an_image_has_a_bill(tmp_path, name):
    directory = tmp_path / "images"
    directory.mkdir()
    for lock in IMAGES.glob("*.txt"):
        shutil.copy(lock, directory)
    write_sbom(directory, name, REFERENCE)
    found = {part["name"] for part in json.loads((directory / f"{name}.cdx.json").read_text())["components"]}
    assert found == {*requirements(IMAGES, name), "pip"}
