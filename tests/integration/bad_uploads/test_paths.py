"""Names of files, what is no file, and files that change while they are read."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from neuroweaver import files
from tests.integration.bad_uploads.validating import AS_ROOT, GOOD, LEADS, Call, adf, assert_one_line, lead, put, table

pytestmark = pytest.mark.timeout(10)


# names


NAMES: dict[str, str | bytes] = {
    "a new line": "le\nads.csv",
    "a return": "le\rads.csv",
    "signs that colour a terminal": "a\x1b[31mred\x1b[0m.csv",
    "signs that set a terminal's title": "a\x1b]0;owned\x07.csv",
    "the markup of a terminal": "a[bold]b[red].csv",
    "a link in the markup of a terminal": "[link=file:etc]passwd.csv",
    "255 bytes": "x" * 251 + ".csv",
    "255 bytes in UTF-8": "ü" * 125 + "x.csv",
    "bytes that are no UTF-8": b"a\xff\xfe.csv",
    "right to left": "\u202egnp.csv",
    "blanks": "  .csv",
    "quotes": "a'b\"`.csv",
    "an element of HTML": "<img src=x onerror=alert(1)>.csv",
    "a formula": "=1+1.csv",
    "a device of another system": "con.csv",
    "the name of an option": "--html.csv",
    "dots": "...csv",
}


@pytest.mark.parametrize("what", NAMES)
def test_the_name_of_a_file_does_not_matter(call: Call, what: str) -> None:
    path = put(NAMES[what], table(GOOD))

    ended = call(*LEADS, "--html", "page.html", "--", path, writes=("page.html",))

    assert (ended.code, ended.err) == (0, "")
    assert "<img src=x" not in Path("page.html").read_text(encoding="utf-8")


@pytest.mark.security(17)
@pytest.mark.parametrize("what", [name for name in NAMES if name != "bytes that are no UTF-8"])
def test_the_name_of_a_file_is_kept_and_never_forms_a_path(call: Call, tmp_path: Path, what: str) -> None:
    path = put(NAMES[what], table(GOOD))

    ended = call(*LEADS, "--store", "--", path, writes=("../home",))

    assert (ended.code, ended.err) == (0, "")
    (folder,) = (tmp_path / "home" / "datasets").glob("ds_*")
    assert json.loads((folder / "source.json").read_text())["file"] == NAMES[what]
    assert {path.name for path in folder.iterdir()} == {
        "rows.parquet", "report.json", "report.html", "quarantine.jsonl", "source.json", "card.md",
    }  # fmt: skip


def test_a_path_that_climbs_is_read_and_nothing_is_written_beside_it(call: Call, tmp_path: Path) -> None:
    (tmp_path / "here" / "a" / "b").mkdir(parents=True)
    (tmp_path / "here" / "etc").mkdir()
    put("etc/passwd.csv", table(GOOD))
    os.chdir("a/b")

    ended = call("../../etc/passwd.csv", *LEADS, "--store", writes=("../home",))

    (folder,) = (tmp_path / "home" / "datasets").glob("ds_*")
    assert ended.code == 0
    assert json.loads((folder / "source.json").read_text())["file"] == "passwd.csv"


@pytest.mark.parametrize(
    "name", ["a[bold]b[red].csv", "[link=file:etc]passwd.csv", "x" * 251 + ".csv", "a'b\"`.csv", "../../etc/passwd.csv"]
)
def test_a_file_that_is_not_there_is_named_as_it_was_given(call: Call, name: str) -> None:
    assert_one_line(call(name, *LEADS), 1, f"no such file: {name}\n")


@pytest.mark.parametrize("name", ["a[bold]b[red].csv", "[link=file:etc]passwd.csv", "x" * 251 + ".csv", "a'b\"`.csv"])
def test_a_file_that_is_refused_is_named_as_it_was_given(call: Call, name: str) -> None:
    assert_one_line(call(put(name, gzip.compress(b"")), *LEADS), 1, f"neuroweaver: {name} is a gzip archive")


# what is no file


NO_FILES = (
    "folder", ".", "/", "fifo", "fifo.csv", "socket", "loop.csv", "ping.csv", "dangling.csv", "zero.csv", "/dev/null",
    "/dev/zero", "/dev/stdin", "nowhere.csv", "nowhere/leads.csv", "leads.csv/leads.csv", "x" * 300 + ".csv",
)  # fmt: skip


@pytest.mark.security(16)
@pytest.mark.usefixtures("odd_paths")
@pytest.mark.parametrize(
    "options",
    [(), ("--format", "csv"), ("--format", "automotive-crm"), ("--mapping", "vinsolutions"), ("--store",)],
    ids=" ".join,
)
@pytest.mark.parametrize("path", NO_FILES)
def test_what_is_no_regular_file_is_refused_at_once(call: Call, path: str, options: tuple[str, ...]) -> None:
    assert_one_line(call(path, *LEADS, *options), 1, path)


def test_a_link_to_a_file_is_read(call: Call) -> None:
    os.symlink(put("leads.csv", table(GOOD)), "link.csv")

    assert call("link.csv", *LEADS).code == 0


@pytest.mark.skipif(AS_ROOT, reason="nothing is unreadable to root")
def test_a_file_that_may_not_be_read_is_named(call: Call) -> None:
    path = put("leads.csv", table(GOOD))
    os.chmod(path, 0)

    for options in ((), ("--format", "csv"), ("--mapping", "vinsolutions")):
        ended = call(path, *LEADS, *options)

        assert ended.code in (1, 2)
        assert_one_line(ended, ended.code, "leads.csv")


@pytest.mark.skipif(AS_ROOT, reason="nothing is unreadable to root")
def test_a_file_in_a_folder_that_may_not_be_entered_is_named(call: Call) -> None:
    os.mkdir("shut")
    put("shut/leads.csv", table(GOOD))
    os.chmod("shut", 0)
    try:
        assert_one_line(call("shut/leads.csv", *LEADS), 1, "shut/leads.csv")
    finally:
        os.chmod("shut", 0o700)


# files that change while they are read


@pytest.fixture
def after_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], None]:
    """Something that happens to a file once its hash is known, before its rows are read."""

    def arrange(happens: Callable[[Path], None]) -> None:
        sha256 = files.sha256

        def then(path: Path) -> str:
            digest = sha256(path)
            happens(path)
            return digest

        monkeypatch.setattr(files, "sha256", then)

    return arrange


@pytest.mark.parametrize("name", ["leads.csv", "leads.json", "leads.xml"])
def test_a_file_that_vanishes_while_it_is_read_is_named(
    call: Call, after_the_first_pass: Callable[[Callable[[Path], None]], None], name: str
) -> None:
    text = {"leads.csv": table(GOOD), "leads.json": f"[{lead()}]", "leads.xml": adf()}[name]
    put(name, text)
    after_the_first_pass(Path.unlink)

    assert_one_line(call(name, *LEADS, changes=(name,)), 1, name)


@pytest.mark.parametrize("left", [0, 1, 40, 150])
@pytest.mark.parametrize("name", ["leads.csv", "leads.json", "leads.xml"])
def test_a_file_that_shrinks_while_it_is_read_is_refused_and_not_stored(
    call: Call, after_the_first_pass: Callable[[Callable[[Path], None]], None], name: str, left: int
) -> None:
    put(name, {"leads.csv": table(GOOD), "leads.json": f"[{lead()}]", "leads.xml": adf()}[name])
    after_the_first_pass(lambda path: os.truncate(path, left))

    assert call(name, *LEADS, "--store", changes=(name,)).code == 1
