from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, get_args

import pytest

from neuroweaver.report import Finding, Leakage, RowCounts, Rule, TokenCounts, ValidationReport
from pipelines.report_page import Page, Sample, chart_of, fields_of, render, rules_of, segments, share

VOID = {"meta", "col", "br", "rect", "line"}
INLINE = {"bdi", "span", "strong", "code"}


class Reader(HTMLParser):
    """The elements of a page with the names of their attributes, its text, and the elements left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        self.read = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " * (tag not in INLINE)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def found(rule: str = "enum", column: str | None = "vehicle_type", value: str | None = "SUV", **more: Any) -> Finding:
    fields = {"line": 7, "record": 5, "message": "not one of its labels", "hint": "did you mean 'suv'?"} | more
    return Finding(rule=rule, column=column, value=value, **fields)


def reported(**fields: Any) -> ValidationReport:
    usual: dict[str, Any] = {
        "dataset_id": "ds_0123456789abcdef", "sha256": "0" * 64, "model_type": "automotive-sales", "data_format": "csv",
        "encoding": "utf-8", "delimiter": ",", "valid": True, "errors": (), "errors_truncated": False, "warnings": (),
        "rows": RowCounts(total=1300, valid=1271, quarantined=20, duplicates=9), "by_rule": {}, "pii": {},
        "leakage": Leakage(), "tokens": TokenCounts(), "labels": {},
    }  # fmt: skip
    return ValidationReport(**{**usual, **fields})


def paged(report: ValidationReport | None = None, **fields: Any) -> Page:
    empty: dict[str, Any] = {
        "source": {}, "sides": {}, "balance": {}, "lengths": (), "token_limit": None, "samples": ()
    }  # fmt: skip
    return Page(**{"report": report or reported(), **empty, **fields})


def read(page: Page) -> Reader:
    reader = Reader(render(page))
    assert reader.open == []
    return reader


SPLIT = {"train": 1000, "validation": 60, "held_out": 211}
BALANCE = {
    "trade_in": {
        "unknown": {"train": 700, "validation": 40, "held_out": 150},
        "yes": {"train": 300, "validation": 20, "held_out": 58},
        "no": {"held_out": 3},
    }
}
LEAD = Sample(
    "lead-qualification", 12, "train", {"customer_message": "A used truck, please.", "condition": "used"}, ("timeline",)
)


def stored() -> Page:
    report = reported(
        errors=(found(),), warnings=(found("unknown_column", "LeadSource", None, record=None, line=1),),
        by_rule={"enum": 1, "unknown_column": 1}, pii={"email": 3, "phone": 0},
        leakage=Leakage(train_eval_duplicates=0, near_duplicates=38),
        tokens=TokenCounts(p50=140, p95=200, max=230, over_length=0),
    )  # fmt: skip
    source = {
        "file": "leads.csv", "dealership": "North", "department": "sales", "created_at": "2026-07-14T09:31:05Z"
    }  # fmt: skip
    return paged(
        report, source=source, sides=SPLIT, balance=BALANCE, lengths=[*range(100, 231)], token_limit=256, samples=[LEAD]
    )


def unread() -> Page:
    problem = found(
        "malformed", None, None, record=None, line=900, message="the file breaks off in a string", hint=None
    )
    report = reported(rows=RowCounts(), valid=False, errors=(problem,), by_rule={"malformed": 1}, encoding=None)
    return paged(report, source={"file": "leads.json"})


def test_valid_data_is_said_to_be_so_with_its_figures() -> None:
    text = read(stored()).read

    assert "Valid: this data can be trained on" in text
    assert "1,271 of 1,300 rows can be used (98 %). 20 rows are set aside with the reasons. 9 rows are copies" in text
    assert "Held out the scores; never trained on 211 17 %" in text
    assert "Texts on both sides 0 nothing that is tested is also trained on" in text
    assert "E-mail addresses [EMAIL] 3" in text
    assert "2026-07-14 09:31 UTC" in text
    assert "Not given Date range, mapping, version of NeuroWeaver" in text


def test_clean_data_needs_nothing() -> None:
    clean = reported(rows=RowCounts(total=320, valid=320, quarantined=0, duplicates=0))

    text = read(paged(clean)).read

    assert "Train on it. Nothing needs to be fixed first." in text
    assert "An error sets its row aside, a warning does not. None were found." in text
    assert "No personal data was found." in text


def test_refusal_names_its_main_reason_and_how_much_must_be_fixed() -> None:
    report = reported(
        valid=False, errors=(found(), found(), found("conflict", None, None)),
        by_rule={"conflict": 40, "enum": 200}, errors_truncated=True,
        rows=RowCounts(total=1000, valid=760, quarantined=240, duplicates=0),
    )  # fmt: skip

    text = read(paged(report, max_quarantined=0.10)).read

    assert "Refused: too many rows have problems" in text
    assert "240 of 1,000 rows (24 %) are quarantined; at most 10 % may be." in text
    assert "Most often: not one of the allowed words (vehicle_type)." in text
    assert "vehicle_type: not one of the allowed words, 200 times. SUV: did you mean 'suv'?" in text
    assert "When at least 140 rows are fixed, the file passes." in text


def test_refusal_leaves_out_a_limit_that_it_does_not_know() -> None:
    report = reported(valid=False, rows=RowCounts(total=3, valid=0, quarantined=3, duplicates=0))

    text = read(paged(report)).read

    assert "Refused: no row can be used 3 of 3 rows (100 %) are quarantined." in text
    assert "the file passes" not in text


def test_missing_columns_are_named_first() -> None:
    errors = tuple(found("missing_column", name, None, record=None, line=1) for name in ("make", "model", "year"))
    rows = RowCounts(total=3, valid=0, quarantined=3, duplicates=0)

    text = read(paged(reported(valid=False, rows=rows, errors=errors, by_rule={"missing_column": 3}))).read

    assert "Refused: 3 needed columns are missing No row can be used without make, model and year." in text


def test_file_that_can_not_be_read_leaves_no_gaps() -> None:
    page = read(unread())

    assert "Refused: the file can’t be read The file breaks off in a string (line 900)." in page.read
    assert "Not in this report: row counts, the split, labels, lengths in tokens, personal data, samples." in page.read
    assert "None" not in page.read
    assert "Personal data and leakage" not in page.read


def test_file_without_rows_is_refused_in_words() -> None:
    rows = RowCounts(total=0, valid=0, quarantined=0, duplicates=0)
    error = found("empty", None, None, record=None, line=1, message="the file has a header and no rows", hint=None)

    text = read(paged(reported(valid=False, rows=rows, errors=(error,), by_rule={"empty": 1}))).read

    assert "Refused: there is no row in the file The file has a header and no rows." in text


@pytest.mark.parametrize("rule", get_args(Rule))
def test_every_rule_is_explained(rule: str) -> None:
    entry = found(rule)

    text = read(paged(reported(warnings=(entry,), by_rule={rule: 1}))).read

    assert re.search(rf"Problems .+ warning does not\. [A-Z][^.]{{8,}} {rule} [A-Z][^.]{{10,}}\.", text)


def test_two_hundred_problems_are_shown_and_the_rest_is_named() -> None:
    errors = tuple(found(line=line, record=line - 2) for line in range(2, 1002))
    report = reported(valid=False, errors=errors, errors_truncated=True, by_rule={"enum": 2419})

    page = read(paged(report))

    assert page.attributes.count(("data-name", "Problem")) == 200
    assert "Show the next 180" in page.read
    assert "2,219 more are not on this page. report.json lists the first 1,000 errors" in page.read
    assert "quarantine.jsonl every quarantined row" in page.read


def test_errors_and_warnings_are_told_apart_also_beyond_the_list() -> None:
    errors = (*(found() for _ in range(997)), *(found("vin_checksum", "vin", "x") for _ in range(3)))
    some = (found("duplicate", None, None), found("vin_checksum", "vin", "y"))
    by_rule = {"enum": 1500, "vin_checksum": 10, "duplicate": 30}
    report = reported(errors=errors, warnings=some, errors_truncated=True, by_rule=by_rule)

    counted = {rule.name: rule.parts for rule in rules_of(report)}
    full = report.model_copy(update={"warnings": some * 500})
    unknown = {rule.name: rule.parts for rule in rules_of(full)}

    assert counted["enum"] == {"error": 1500, "warning": 0, "unlisted": 0}
    assert counted["vin_checksum"] == {"error": 9, "warning": 1, "unlisted": 0}
    assert counted["duplicate"] == {"error": 0, "warning": 30, "unlisted": 0}
    assert unknown["enum"] == {"error": 1500, "warning": 0, "unlisted": 0}
    assert rules_of(reported(by_rule={"enum": 2}, warnings=(found(),) * 2))[0].parts["warning"] == 2


def test_values_that_come_again_are_counted_with_their_hint() -> None:
    report = reported(errors=(found(), found(), found(value="Truck")), by_rule={"enum": 3})

    (rule,) = rules_of(report)

    assert rule.columns == (("vehicle_type", 3),)
    assert [(entry.value, count) for entry, count in rule.repeats] == [("SUV", 2)]
    assert "SUV 2 times: did you mean 'suv'?" in read(paged(report)).read


def test_rare_labels_and_those_missing_on_a_side_are_marked() -> None:
    (field,) = fields_of(stored())
    text = read(stored()).read

    assert [(value.name, value.rows, value.missing) for value in field.values] == [
        ("unknown", 890, ()), ("yes", 378, ()), ("no", 3, ("train", "validation")),
    ]  # fmt: skip
    assert [value.name for value in field.flagged] == ["no"]
    assert "no only 3 rows, none in train and validation" in text
    assert "always answering unknown would be right in 70 %" in text
    assert "Look at the 1 label that is rare or missing on a side of the split" in text


def test_field_that_is_on_one_side_only_is_marked_as_missing_on_the_others() -> None:
    (field,) = fields_of(replace(stored(), balance={"trade_in": {"yes": {"train": 20}}}))

    assert field.values[0].missing == ("validation", "held_out")
    assert field.never == ("no", "unknown")


def test_labels_of_a_file_that_is_not_split_are_those_of_the_report() -> None:
    page = paged(reported(labels={"timeline": {"unknown": 8}, "condition": {"used": 5, "new": 6}}))

    assert [field.name for field in fields_of(page)] == ["condition", "timeline"]
    assert [(value.name, value.sides) for value in fields_of(page)[0].values] == [
        ("new", {"all": 6}),
        ("used", {"all": 5}),
    ]
    assert "Train" not in read(page).read.replace("Train on it", "").replace("Training", "")


def test_many_values_of_an_open_field_are_summed_up() -> None:
    makes = {f"make {number:02}": {"all": 1} for number in range(40)}

    (field,) = fields_of(paged(balance={"make": makes}))

    assert (len(field.values), len(field.rest)) == (12, 28)
    assert field.flagged == []
    assert "and 28 rarer values, together in 28 rows" in read(paged(balance={"make": makes})).read


def test_chart_holds_every_row_and_marks_median_p95_and_limit() -> None:
    chart = chart_of([*range(100, 200), 5000], TokenCounts(), 256)

    assert chart is not None
    assert sum(bar.rows for bar in chart.bars) == 101
    assert chart.bars[-1].high is None
    assert [(name, tokens) for name, tokens, _ in chart.marks] == [("median", 150), ("p95", 195), ("limit", 256)]
    assert all(0 <= x <= 100 for _, _, x in chart.marks)


@pytest.mark.parametrize("lengths", [[0], [7], [7, 7], [1, 100_000], [3] * 1000 + [10**7]])
@pytest.mark.parametrize("tokens", [TokenCounts(), TokenCounts(p50=1, p95=2, max=3)])
@pytest.mark.parametrize("limit", [None, 1, 10**9])
def test_chart_of_any_lengths_is_drawn(lengths: list[int], tokens: TokenCounts, limit: int | None) -> None:
    chart = chart_of(lengths, tokens, limit)

    assert chart is not None
    assert 1 <= len(chart.bars) <= 60
    assert sum(bar.rows for bar in chart.bars) == len(lengths)
    read(paged(lengths=lengths, token_limit=limit))


def test_limit_far_off_is_said_instead_of_drawn() -> None:
    page = read(paged(lengths=[100, 120], token_limit=2048))

    assert "The limit of 2,048 lies far to the right." in page.read
    assert "limit 2,048" in page.read


def test_labels_that_are_not_stated_are_told_from_empty_ones() -> None:
    text = read(stored()).read

    assert "customer_message A used truck, please." in text
    assert "timeline not stated" in text
    assert "make empty" in text


def test_lists_of_a_sample_are_lists() -> None:
    values = {"causes": ["worn pads", "scored rotor"], "steps": []}

    page = read(paged(samples=[Sample("service-diagnosis", 2, "train", values, ("steps",))]))

    assert "worn pads scored rotor" in page.read
    assert "steps not stated" in page.read


HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "{{7*7}}{% raw %}",
    "javascript:alert(1)", "</style><style>*{display:none}", "</title><h1>Valid</h1>", "]]><!-- -->", "&lt;b&gt;&#60;",
    "=HYPERLINK(\"http://x\")", "%s%(x)s{0}",
]  # fmt: skip


def filled(text: str) -> Page:
    """A page on which everything that a stranger may write is `text`."""
    entries = (found("enum", text, text, message=text, hint=text),) * 2
    strange = found("unknown_column", text, None, message=text, hint=text, line=1, record=None)
    report = reported(
        dataset_id=text, sha256=text, model_type=text, data_format=text, encoding=text, delimiter=text, valid=False,
        errors=entries, warnings=(strange,), by_rule={"enum": 2, "unknown_column": 1}, pii={text: 2},
    )  # fmt: skip
    keys = ("file", "dealership", "department", "date_range", "mapping", "created_at", "version", text)
    return Page(
        report, dict.fromkeys(keys, text), {"train": 2, text: 1}, {text: {text: {"train": 2, text: 1}}}, [10, 20], 30,
        [Sample(text, 2, text, {text: text}, ()), Sample("finance-answer", 3, "train", {"question": text, "answer": text}, ())],
    )  # fmt: skip


@pytest.mark.security(24)
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    page, plain = read(filled(text)), read(filled("plain"))

    assert page.elements == plain.elements
    assert [value for name, value in page.attributes if name == "class"] == [
        value for name, value in plain.attributes if name == "class"
    ]
    assert page.text.count(text) >= 20


def test_hostile_text_of_an_unreadable_file_stays_text() -> None:
    def page(text: str) -> Page:
        error = found("malformed", None, text, message=text, hint=text, record=None)
        return paged(reported(valid=False, rows=RowCounts(), errors=(error,), by_rule={"malformed": 1}))

    assert read(page("<script>alert(1)</script>")).elements == read(page("plain")).elements


def test_signs_that_html_can_not_hold_are_replaced() -> None:
    html = render(filled("a\x00b\x1b[31mc\ud800d\x85e\u202efdp.exe\u2066"))

    assert "a\ufffdb\ufffd[31mc\ufffdd\ufffde\ufffdfdp.exe\ufffd" in html
    assert html.encode("utf-8").decode("utf-8") == html


@pytest.mark.parametrize("page", [stored(), unread(), filled("x")], ids=["stored", "unread", "filled"])
def test_page_needs_nothing_from_outside_and_runs_nothing(page: Page) -> None:
    html = render(page)
    reader = read(page)

    assert {tag for tag, _ in reader.elements}.isdisjoint(
        {"script", "link", "img", "iframe", "a", "form", "base", "object"}
    )
    names = {name for name, _ in reader.attributes}
    assert not {name for name in names if name.startswith("on") or name in ("href", "src", "style", "xlink:href")}
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize("page", [stored(), unread(), filled("x")], ids=["stored", "unread", "filled"])
def test_page_can_be_read_by_ear(page: Page) -> None:
    html = render(page)
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", html)]

    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert html.count("<table") == html.count("<caption")
    assert all('aria-hidden="true"' in svg or 'aria-label="' in svg for svg in re.findall(r"<svg[^>]*>", html))
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'aria-labelledby="([^"]+)"', html)) <= set(ids)
    assert '<html lang="en">' in html


def turned(mapping: Any) -> Any:
    """The same mapping written in the other order."""
    if not isinstance(mapping, dict):
        return mapping
    return {key: turned(value) for key, value in reversed(mapping.items())}


def test_same_page_is_the_same_bytes_whatever_the_order_of_its_mappings() -> None:
    page = replace(stored(), samples=[LEAD, Sample("else", 3, "train", {"b": 1, "a": 2, "A": 3}, ())])
    report = page.report
    other = replace(
        page,
        report=report.model_copy(update={"by_rule": turned(report.by_rule), "pii": turned(report.pii)}),
        source=turned(page.source), sides=turned(page.sides), balance=turned(page.balance),
        samples=[replace(sample, values=turned(sample.values)) for sample in page.samples],
    )  # fmt: skip

    assert render(other) == render(page) == render(page)


@pytest.mark.parametrize(("part", "whole", "text"), [
    (0, 10, "0 %"), (10, 10, "100 %"), (1, 3, "33 %"), (1, 100_000, "< 0.1 %"), (99_999, 100_000, "99.9 %"),
    (5, 1000, "0.5 %"), (127, 1271, "10 %"), (999, 1000, "99.9 %"), (0, 0, "–"),
])  # fmt: skip
def test_share_is_never_rounded_to_nothing_or_to_all(part: int, whole: int, text: str) -> None:
    assert share(part, whole).replace("\N{NO-BREAK SPACE}", " ") == text


def test_segments_fill_the_bar_and_no_part_vanishes() -> None:
    parts = segments({"valid": 999_999, "quarantined": 0, "duplicates": 1}, 1_000_000)

    assert [part.name for part in parts] == ["valid", "duplicates"]
    assert float(parts[1].width.rstrip("%")) > 0.5
    assert sum(float(part.width.rstrip("%")) for part in parts) <= 100.01
    assert segments({"valid": 0}, 0) == []
