"""The project's metadata in pyproject.toml agrees with the requirements that are installed, and names all files that a package needs."""

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from setuptools import find_packages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it for older Pythons

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def parse_requirements(lines) -> dict[str, str]:
    """Return {name: version specifier} of requirement lines; comments and empty lines are left out."""
    requirements = [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]
    return {r.name.lower().replace("_", "-"): str(r.specifier) for r in requirements}


def read_requirements(name: str) -> dict[str, str]:
    return parse_requirements((ROOT / name).read_text().splitlines())


def test_dependencies_are_the_direct_requirements(pyproject):
    project = pyproject["project"]
    declared = parse_requirements([*project["dependencies"], *project["optional-dependencies"]["test"]])
    assert declared == read_requirements("requirements.in")


def test_ray_is_optional(pyproject):
    assert parse_requirements(pyproject["project"]["optional-dependencies"]["ray"]) == read_requirements("requirements-ray.txt")


def test_every_dependency_is_pinned(pyproject):
    pinned = read_requirements("requirements.txt")
    missing = [name for name in parse_requirements(pyproject["project"]["dependencies"]) if name not in pinned]
    assert not missing and all(specifier.startswith("==") for specifier in pinned.values())


def test_packages_hold_all_modules_and_data_files(pyproject):
    settings = pyproject["tool"]["setuptools"]
    packages = set(find_packages(str(ROOT), include=settings["packages"]["find"]["include"]))
    assert packages == {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "lib").rglob("__init__.py")}
    assert all((p.parent / "__init__.py").exists() for p in (ROOT / "lib").rglob("*.py"))
    listed = {
        path for package, patterns in settings["package-data"].items() for pattern in patterns
        for path in (ROOT / Path(*package.split("."))).glob(pattern) if path.is_file()
    }  # fmt: skip
    files = {p for p in (ROOT / "lib").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert files == listed
