"""`neuroweaver validate` on a file made here: a good one to spoil, the call, and what is expected of its end."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

SALES = ("--model-type", "automotive-sales")
LEADS = (*SALES, "--task", "lead-qualification")
HEADER = "customer_message,vehicle_type,condition,make,model,year,budget_min,budget_max,budget_kind,timeline,financing,trade_in"
GOOD = "Used SUV under 30k,suv,used,,,,,30000,total,unknown,unknown,unknown"
LEAD = {
    "customer_message": "Used SUV under 30k", "vehicle_type": "suv", "condition": "used", "budget_max": 30000,
    "budget_kind": "total", "timeline": "unknown", "financing": "unknown", "trade_in": "unknown",
}  # fmt: skip
PROSPECT = """<prospect>
<requestdate>2026-03-01T10:00:00</requestdate>
<vehicle interest="buy" status="used"><year>2020</year><make>Honda</make><model>Civic</model></vehicle>
<customer><comments>{}</comments></customer>
</prospect>"""
SECRET = "canary-5d1e"
PASSWD = "file:///etc/passwd"
MEGABYTE = 10**6
AS_ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Ended:
    code: Any
    out: str
    err: str

    @property
    def errors(self) -> list[tuple[int, str, str]]:
        """Line, column ("" for the row or the file) and rule of every error that the report shows."""
        found = re.findall(r"^  error: line (\d+)(?:, (.*?))?: .* \[(\w+)\]$", self.out, re.MULTILINE)
        return [(int(line), column, rule) for line, column, rule in found]


class Call(Protocol):
    """`writes`: the only paths, from the working directory, that may be there afterwards and were not before.

    `changes`: those that the test itself changes meanwhile.
    """

    def __call__(self, *arguments: object, writes: tuple[str, ...] = (), changes: tuple[str, ...] = ()) -> Ended: ...


def contents(root: Path) -> dict[str, tuple[int, int]]:
    """Every path below `root`, links not followed, with the size and the time of change of what is no folder."""
    found: dict[str, tuple[int, int]] = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            state = os.lstat(path)
            is_folder = os.path.isdir(path) and not os.path.islink(path)
            found[os.path.relpath(path, root)] = (0, 0) if is_folder else (state.st_size, state.st_mtime_ns)
    return found


def put(name: str | bytes, content: str | bytes) -> str:
    """A file in the working directory."""
    with open(name, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return os.fsdecode(name)


def assert_one_line(ended: Ended, code: int, *parts: str) -> None:
    assert (ended.code, ended.out) == (code, ""), ended
    assert ended.err.startswith("neuroweaver: "), ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.removesuffix("\n").isprintable(), ended.err
    assert all(part in ended.err for part in parts), ended.err


def assert_report(ended: Ended, line: int, rule: str, column: str = "", *parts: str) -> None:
    assert (ended.code, ended.err) == (1, ""), ended
    assert ended.out.startswith("INVALID: "), ended.out[:1000]
    assert (line, column, rule) in ended.errors, ended.out[:1000]
    assert all(part in ended.out for part in parts), ended.out[:1000]


def table(*rows: str) -> str:
    return "\n".join((HEADER, *rows)) + "\n"


def lead(**changes: Any) -> str:
    return json.dumps(LEAD | changes)


def adf(comments: str = "Used Civic, please", before: str = "") -> str:
    return f'<?xml version="1.0"?>\n{before}<adf>\n{PROSPECT.replace("{}", comments)}\n</adf>\n'


def changed(old: str, new: str) -> str:
    return table(GOOD, GOOD.replace(old, new))


def raw(value: str) -> str:
    return lead().replace("30000", value)
