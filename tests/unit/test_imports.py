"""The folders are the architecture: who may import whom, read from the source."""

from __future__ import annotations

import ast
import importlib.util
import site
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("neuroweaver", "pipelines", "serving")
FRAMEWORKS = {"ray", "mlflow", "bentoml", "pandera", "fastapi"}
ONLY_IN = {
    "ray": {f"pipelines/ray_{noun}.py" for noun in ("audits", "cluster", "jobs", "stream", "tune")},
    "pandera": {"pipelines/schemas.py"},
    "bentoml": {"serving/service.py"},
    "mlflow": {"pipelines/tracking.py", "serving/registry.py"},
}


def imports(source: str) -> Iterator[str]:
    """Every module that is imported anywhere in `source`, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant))


def top_level_imports(package: str) -> dict[str, set[str]]:
    """File -> the packages that it imports from."""
    found = {
        str(path.relative_to(ROOT)): {name.split(".")[0] for name in imports(path.read_text(encoding="utf-8"))}
        for path in (ROOT / package).rglob("*.py")
    }
    assert len(found) > 10
    return found


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b, c\nfrom d.e import f\ndef g():\n    import h\nimportlib.import_module('i.j')\n"

    assert set(imports(source)) == {"a.b", "c", "d.e", "h", "i.j"}


def test_the_domain_imports_no_framework_and_neither_pipelines_nor_serving() -> None:
    forbidden = FRAMEWORKS | {"pipelines", "serving"}

    assert {
        file: found & forbidden for file, found in top_level_imports("neuroweaver").items() if found & forbidden
    } == {}


@pytest.mark.parametrize(("package", "other"), [("pipelines", "serving"), ("serving", "pipelines")])
def test_pipelines_and_serving_never_import_each_other(package: str, other: str) -> None:
    assert [file for file, found in top_level_imports(package).items() if other in found] == []


@pytest.mark.parametrize("framework", ONLY_IN)
def test_a_framework_is_known_in_its_own_files_only(framework: str) -> None:
    users = {file for package in PACKAGES for file, found in top_level_imports(package).items() if framework in found}

    assert users == ONLY_IN[framework]


def test_folders_of_data_hold_no_python() -> None:
    assert [path for folder in ("datasets", "configs") for path in (ROOT / folder).rglob("*.py")] == []
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_datasets_is_hugging_faces_package_even_from_the_root_of_the_repository(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", ["", str(ROOT), *sys.path])
    monkeypatch.delitem(sys.modules, "datasets", raising=False)

    found = importlib.util.find_spec("datasets")

    assert found is not None
    assert found.origin is not None, "a namespace package: our own folder"
    assert any(Path(found.origin).is_relative_to(folder) for folder in site.getsitepackages())
