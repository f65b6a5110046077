"""Options and outputs that can't be."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import pytest

from tests.integration.bad_uploads.validating import (
    AS_ROOT,
    GOOD,
    LEADS,
    SALES,
    Call,
    assert_one_line,
    assert_report,
    changed,
    put,
    table,
)

pytestmark = pytest.mark.timeout(10)


# options


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ((*LEADS, "--format", "xlsx"), ("data format 'xlsx'", "one of csv, json, automotive-crm")),
        ((*LEADS, "--format", "CSV"), ("data format 'CSV'", "one of csv, json, automotive-crm")),
        ((*LEADS, "--format", "../csv"), ("data format '../csv'", "one of csv, json, automotive-crm")),
        (("--model-type", "trucks"), ("model type 'trucks'", "one of automotive-sales, service-advisor, ")),
        (("--model-type", ""), ("model type ''", "one of automotive-sales, service-advisor, ")),
        (("--model-type", "\x1b[2J\n"), (r"model type '\x1b[2J\n'", "one of automotive-sales, ")),
        (("--model-type", "[bold]x[/bold]"), ("model type '[bold]x[/bold]'", "one of automotive-sales, ")),
        ((*SALES, "--task", "walk"), ("task 'walk'", "one of lead-qualification, objection-handling, ")),
        ((*SALES, "--task", ""), ("task ''", "one of lead-qualification, objection-handling, ")),
        ((*SALES, "--task", "a\nb[/]"), (r"task 'a\nb[/]'", "one of lead-qualification, ")),
        ((*SALES, "--task", "parts-lookup"), ("parts-lookup is no task of automotive-sales", "lead-qualification, ")),
        ((*LEADS, "--department", "kitchen"), ("department 'kitchen'", "one of sales, service, parts, finance")),
        ((*LEADS, "--department", "\x1b[2J"), (r"department '\x1b[2J'", "one of sales, service, parts, finance")),
        ((*SALES, "--mapping", "nope"), ("mapping 'nope'", "one of cdk, ", "or the path of a file")),
        ((*SALES, "--mapping", ""), ("mapping ''", "one of cdk, ")),
        ((*SALES, "--mapping", "a\n\x1b[2J"), (r"mapping 'a\n\x1b[2J'", "one of cdk, ")),
        ((*SALES, "--mapping", "../../nowhere.yaml"), ("mapping '../../nowhere.yaml'", "one of cdk, ")),
        ((*SALES, "--mapping", "."), ("mapping '.'", "one of cdk, ")),
        ((*SALES, "--mapping", "/dev/zero"), ("mapping '/dev/zero'", "one of cdk, ")),
        ((*SALES, "--mapping", "/etc/passwd"), ("/etc/passwd: ", "must hold keys and values")),
        ((*SALES, "--mapping", "leads.csv"), ("leads.csv: ", "must hold keys and values")),
        ((*SALES, "--mapping", "tag.yaml"), ("tag.yaml: not YAML", "python/object")),
        ((*SALES, "--mapping", "deep.yaml"), ("deep.yaml: not YAML",)),
        ((*SALES, "--mapping", "large.yaml"), ("large.yaml: a mapping file has at most 1,048,576 bytes",)),
        ((*LEADS, "--from", "tomorrow"), ("--from 'tomorrow' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--from", ""), ("--from '' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--from", "2026-02-30"), ("--from '2026-02-30' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--from", "01/02/2026"), ("--from '01/02/2026' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--from", "2026-01-01T00:00"), ("--from '2026-01-01T00:00' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--to", "2026-13-01"), ("--to '2026-13-01' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--to", "9" * 5000), ("--to '999", "is no date", "YYYY-MM-DD")),
        ((*LEADS, "--to", "2026-01-01\n\x1b[2J"), (r"--to '2026-01-01\n\x1b[2J' is no date", "YYYY-MM-DD")),
        (
            (*LEADS, "--from", "2026-02-01", "--to", "2026-01-31"),
            ("the date range ends before it begins", "2026-02-01 to 2026-01-31"),
        ),
        ((*LEADS, "--from"), ("--from",)),
        ((*LEADS, "--nonsense"), ("--nonsense",)),
        ((*LEADS, "second.csv"), ("second.csv",)),
    ],
    ids=lambda value: " ".join(ascii(word)[1:-1][:30] for word in value if word not in LEADS) or None,
)
def test_an_option_that_is_wrong_is_named_with_its_value_and_what_is_allowed(
    call: Call, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    put("leads.csv", table(GOOD))
    put("tag.yaml", "name: !!python/object/apply:os.system ['touch opened']\n")
    put("deep.yaml", "name: " + "[" * 2000)
    put("large.yaml", "x" * 2**21)

    ended = call("leads.csv", *options)

    assert_one_line(ended, 2, *parts)
    assert "root:" not in ended.err


# outputs that can't be written


@pytest.mark.parametrize("option", ["--html", "--quarantine"])
def test_an_output_in_a_folder_that_is_not_there_makes_that_folder_alone(call: Call, option: str) -> None:
    path = put("leads.csv", table(GOOD))

    assert call(path, *LEADS, option, "new/folder/output", writes=("new",)).code == 0
    assert Path("new/folder/output").is_file()


@pytest.mark.parametrize("option", ["--html", "--quarantine"])
@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "no permission to write"),
    ],
    ids=["full", "quota", "read-only", "forbidden"],
)
def test_a_disk_that_takes_no_output_is_one_line_and_leaves_nothing_behind(
    call: Call, monkeypatch: pytest.MonkeyPatch, option: str, reason: int, words: str
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(reason, os.strerror(reason))

    path = put("leads.csv", changed("suv", "tank"))
    put("output", "what was there")
    monkeypatch.setattr(os, "fsync", refuse)

    assert_one_line(call(path, *LEADS, option, "output"), 1, f"can't write output: {words}")
    assert Path("output").read_text() == "what was there"


@pytest.mark.skipif(AS_ROOT, reason="no folder is read-only to root")
@pytest.mark.parametrize("option", ["--html", "--quarantine"])
@pytest.mark.parametrize("output", ["shut/output", "shut/new/output"])
def test_an_output_in_a_read_only_folder_is_one_line(call: Call, option: str, output: str) -> None:
    path = put("leads.csv", table(GOOD))
    os.mkdir("shut", 0o500)
    try:
        assert_one_line(call(path, *LEADS, option, output), 2, f"{option} {output}", "no permission")
    finally:
        os.chmod("shut", 0o700)


@pytest.mark.parametrize("option", ["--html", "--quarantine"])
def test_an_output_that_is_a_folder_or_the_file_itself_is_refused_before_anything_is_read(
    call: Call, option: str
) -> None:
    path = put("leads.csv", table(GOOD))
    os.link(path, "same.csv")
    os.symlink(path, "link.csv")
    os.mkdir("folder")

    for output, part in (
        ("folder", "folder"),
        ("leads.csv", "file to check"),
        ("same.csv", "file"),
        ("link.csv", "file"),
    ):
        assert_one_line(call(path, *LEADS, option, output), 2, f"{option} {output} is ", part)


@pytest.mark.usefixtures("odd_paths")
@pytest.mark.parametrize("option", ["--html", "--quarantine"])
@pytest.mark.parametrize("output", ["fifo", "socket", "zero.csv"])
def test_an_output_that_is_a_device_or_a_pipe_is_refused_and_left_as_it_is(
    call: Call, option: str, output: str
) -> None:
    before = os.lstat(output)

    ended = call("leads.csv", *LEADS, option, output)

    assert (os.lstat(output).st_mode, os.lstat(output).st_ino) == (before.st_mode, before.st_ino)
    assert_one_line(ended, 2, f"{option} {output} is no regular file")


def test_two_outputs_into_one_file_are_refused(call: Call) -> None:
    path = put("leads.csv", table(GOOD))

    for other in ("output", "./output", Path("output").absolute()):
        assert_one_line(call(path, *LEADS, "--html", "output", "--quarantine", other), 2, "--quarantine", "--html")


def test_no_output_is_written_for_a_file_that_is_refused_by_its_kind(call: Call) -> None:
    path = put("leads.csv", gzip.compress(b""))

    assert_one_line(call(path, *LEADS, "--html", "page.html", "--quarantine", "rows.jsonl", "--store"), 1, "gzip")


def test_an_invalid_file_is_not_stored(call: Call) -> None:
    ended = call(put("leads.csv", changed("suv", "tank")), *LEADS, "--store")

    assert_report(ended, 3, "enum", "vehicle_type", "not stored")
