"""The table of docs/security.md: every statement and every fault has tests, and they are where it says."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
STATEMENTS, FAULTS = range(1, 31), range(1, 13)
ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
# Below these something is known to be wrong with them.
FLOORS = {
    "bentoml": "1.4.39", "ray": "2.60.0", "mlflow": "3.17.2", "torch": "2.11", "transformers": "5.3", "datasets": "5.2",
    "starlette": "1.3.1", "python-multipart": "0.0.31", "PyJWT": "2.15", "cryptography": "50.0.0", "aiohttp": "3.14.4",
    "defusedxml": "0.7.1", "pyarrow": "23.0.1", "h11": "0.16", "PyYAML": "6.0.3",
}  # fmt: skip
MALWARE = {"litellm": ("1.82.7", "1.82.8"), "lightning": ("2.6.2", "2.6.3")}
# What writes cells that a spreadsheet opens.
SPREADSHEETS = {"to_csv", "write_csv", "to_excel", "DictWriter", "openpyxl", "xlsxwriter", "odf"}


def marked(source: str) -> Iterator[tuple[str, int]]:
    """`(mark, number)` of every test function in `source`."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("pytest.mark.security", "pytest.mark.fault"):
                assert node.name.startswith("test_"), f"{node.name} is no test"
                yield from ((ast.unparse(call.func).rpartition(".")[2], ast.literal_eval(each)) for each in call.args)


def files_with_tests_of(mark: str) -> dict[int, set[str]]:
    """By number, the files with tests of it."""
    found: dict[int, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        for each, number in marked(path.read_text(encoding="utf-8")):
            if each == mark:
                found[number].add(str(path.relative_to(TESTS)))
    return found


def documented() -> tuple[dict[int, set[str]], dict[int, set[str]]]:
    """The same as the document says it, for statements and for faults."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    statements, faults = text.partition("| fault |")[::2]
    return tuple(  # type: ignore[return-value]
        {int(number): set(re.findall(r"`([^`]+\.py)`", files)) for number, _, files in ROW.findall(part)}
        for part in (statements, faults)
    )


def test_marks_are_found_where_they_stand() -> None:
    source = "import pytest\n@pytest.mark.security(1, 2)\n@pytest.mark.fault(3)\nasync def test_a(): ...\ndef test_b(): ...\n"

    assert set(marked(source)) == {("security", 1), ("security", 2), ("fault", 3)}


@pytest.mark.parametrize(("mark", "numbers", "place"), [("security", STATEMENTS, 0), ("fault", FAULTS, 1)])
def test_every_number_has_tests_where_the_document_says(mark: str, numbers: range, place: int) -> None:
    said = documented()[place]

    assert sorted(said) == list(numbers)
    assert files_with_tests_of(mark) == said


@pytest.mark.security(30)
def test_every_package_is_locked_to_one_version() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    locked = dict(line.split("==") for line in packages if re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line))

    assert len(locked) == len(packages), [line for line in packages if line.split("==")[0] not in locked]
    versions = {name.lower(): Version(version) for name, version in locked.items()}
    assert {name for name, floor in FLOORS.items() if versions[name.lower()] < Version(floor)} == set()
    assert {name for name, bad in MALWARE.items() if locked.get(name) in bad} == set()


@pytest.mark.security(21)
def test_nothing_is_exported_that_a_spreadsheet_would_calculate() -> None:
    """JSON, JSON Lines, Parquet and HTML are; who adds CSV has to escape cells that begin with = + - or @."""
    found = {
        (str(path.relative_to(ROOT)), name)
        for package in ("neuroweaver", "pipelines", "serving")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            {node.attr} if isinstance(node, ast.Attribute) else {node.id} if isinstance(node, ast.Name) else set()
        )
        if name in SPREADSHEETS or ast.unparse(node) == "csv.writer"
    }

    assert found == set()
