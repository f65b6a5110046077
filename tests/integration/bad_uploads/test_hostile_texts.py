"""XML that wants more than to be read, encodings, and markup."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.integration.bad_uploads.spoilt import ATTACKS, BAD_ROWS
from tests.integration.bad_uploads.validating import (
    GOOD,
    HEADER,
    LEADS,
    PASSWD,
    SALES,
    SECRET,
    Call,
    adf,
    assert_report,
    put,
    table,
)

pytestmark = pytest.mark.timeout(10)


# XML that wants more than to be read


@pytest.mark.security(19)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("what", ATTACKS)
def test_xml_that_reaches_beyond_itself_is_refused_and_reads_nothing(
    call: Call, tmp_path: Path, what: str, encoding: str
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    for url in (secret.as_uri(), PASSWD):
        path = put("leads.xml", ATTACKS[what](url).encode(encoding))
        outputs = ("--html", "page.html", "--quarantine", "rows.jsonl")
        writes = ("page.html", "rows.jsonl")

        ended = call(path, *SALES, *outputs, writes=writes)

        assert (ended.code, ended.err) == (1, "")
        assert [rule for _, _, rule in ended.errors] == ["malformed"]
        assert "is refused" in ended.out
        shown = ended.out + "".join(Path(name).read_text(encoding="utf-8") for name in writes)
        assert SECRET not in shown
        assert "root:" not in shown
        Path("page.html").unlink()
        Path("rows.jsonl").unlink()


@pytest.mark.security(19)
@pytest.mark.parametrize("what", [name for name in ATTACKS if "laughs" not in name and "blow-up" not in name])
def test_xml_that_reaches_beyond_itself_opens_no_connection(call: Call, what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        ended = call(put("leads.xml", ATTACKS[what](f"http://127.0.0.1:{server.getsockname()[1]}/x")), *SALES)

        assert ended.code == 1
        with pytest.raises(BlockingIOError):
            server.accept()


def test_an_unknown_entity_and_a_stylesheet_are_no_more_than_text(call: Call) -> None:
    path = put("leads.xml", adf("&x; please", f'<?xml-stylesheet href="{PASSWD}"?>\n'))

    ended = call(path, *SALES)

    assert (ended.code, ended.err) == (0, "")
    assert "root:" not in ended.out


# encodings


def test_utf_7_is_not_decoded(call: Call) -> None:
    hidden = table(GOOD).replace("customer", "+AGM-ustomer", 1)

    assert_report(
        call(put("leads.csv", hidden), *LEADS), 1, "missing_column", "customer_message", "+AGM-ustomer_message"
    )


def test_a_dtd_in_utf_7_is_refused_as_the_text_that_it_is(call: Call, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    hidden = f'+ADwAIQ-DOCTYPE adf [+ADwAIQ-ENTITY x SYSTEM "{secret.as_uri()}"+AD4]+AD4\n'
    text = adf("&x;", hidden).replace('"1.0"', '"1.0" encoding="UTF-7"')

    ended = call(put("leads.xml", text), *SALES)

    assert_report(ended, 2, "malformed")
    assert SECRET not in ended.out


@pytest.mark.parametrize("what", ["a NUL in a text", "a lone surrogate in UTF-16", "bytes of no encoding"])
def test_what_does_not_decode_leaves_every_output_readable(call: Call, what: str) -> None:
    path = put("leads.csv", BAD_ROWS[what][0])
    outputs = ("--html", "page.html", "--quarantine", "rows.jsonl")

    ended = call(path, *LEADS, *outputs, "--json", writes=("page.html", "rows.jsonl"))

    report = json.loads(ended.out)
    (row,) = map(json.loads, Path("rows.jsonl").read_text(encoding="utf-8").splitlines())
    assert [(error["line"], error["rule"]) for error in report["errors"]] == [(3, "encoding")]
    assert (row["line"], row["reasons"][0]["rule"]) == (3, "encoding")
    assert "customer_message" in Path("page.html").read_text(encoding="utf-8")
    assert "\0" not in ended.out + Path("page.html").read_text(encoding="utf-8")


def test_a_page_about_hostile_columns_and_cells_is_inert(call: Call) -> None:
    script = "<script>alert(1)</script>"
    image = "<img src=x onerror=alert(1)>\"'`"
    quoted = '"' + image.replace('"', '""') + '"'
    path = put("leads.csv", f"{HEADER},{script}\n{GOOD},\n{GOOD.replace('suv', quoted)},{script}\n")

    ended = call(path, *LEADS, "--html", "page.html", "--dealership", script + image, writes=("page.html",))

    page = Path("page.html").read_text(encoding="utf-8")
    assert_report(ended, 3, "enum", "vehicle_type")
    assert "&lt;script&gt;" in page
    assert script not in page
    assert "<img src=x" not in page
