"""Ships zoo/ inside the package: it stands at the root, as data, and is installed as formwright/published."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["formwright*"]), "formwright.published"],
    package_dir={"formwright.published": "zoo"},
    package_data={"formwright.published": ["*.toml"]},
)
