"""The packages: every folder with code. `pyproject.toml`, which says all else, has no way to find packages that are not called like it."""

from setuptools import find_packages, setup

FOLDERS = {"ngrpo": "components/ngrpo", "ngrpo_kfp.components": "components", "ngrpo_kfp.pipelines": "pipelines"}
"""Folder of each package that holds the others; `package-dir` in `pyproject.toml` says the same."""
DATA = ["ngrpo_kfp.pipelines.experiments", "ngrpo_kfp.pipelines.presets"]
"""Packages without code."""

setup(
    packages=[
        *FOLDERS,
        *DATA,
        *(
            f"{package}.{name}"
            for package, folder in FOLDERS.items()
            for name in find_packages(folder, exclude=["ngrpo", "ngrpo.*"])
        ),
    ]
)
