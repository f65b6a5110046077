"""Compliance flags that follow from what the customer wrote, whatever the model answers.

- `PII_REDACTED`: the text holds personal data; whatever is kept of it has placeholders instead.
- `NPI_DETECTED`: it holds a card or social security number (non-public information under the GLBA).
- `OPT_OUT_DETECTED`: the customer asks not to be contacted any more.
- `DELETION_REQUEST`: the customer asks for their data to be deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from neuroweaver import pii
from neuroweaver.contracts import ComplianceFlag

_OPT_OUT = re.compile(
    r"\bunsubscribe\b|\bopt(?:ing)?[ -]?out\b|\btake me off\b|\bremove me\b"
    r"|\b(?:stop|quit) (?:texting|calling|emailing|e-mailing|messaging|contacting|sending)\b"
    r"|\b(?:do not|don't|dont|never) (?:contact|call|text|email|e-mail|message) me\b(?! (?:before|after|until|at|on)\b)"
    r"|^\s*stop\s*[.!]*\s*$",
    re.IGNORECASE,
)
_DELETION = re.compile(
    r"\b(?:delete|erase|remove)\b[^.?!]{0,30}\bmy\b[^.?!]{0,20}\b(?:data|information|info|account|records?|details)\b",
    re.IGNORECASE,
)


def flags(texts: Iterable[str]) -> tuple[ComplianceFlag, ...]:
    """The flags of everything that the customer wrote, each once."""
    found: set[ComplianceFlag] = set()
    for text in texts:
        text = text.replace("\u2019", "'")
        kinds = pii.count(text)
        if kinds:
            found.add("PII_REDACTED")
        if kinds.keys() & {"ssn", "card", "account"}:
            found.add("NPI_DETECTED")
        if _OPT_OUT.search(text):
            found.add("OPT_OUT_DETECTED")
        if _DELETION.search(text):
            found.add("DELETION_REQUEST")
    return tuple(sorted(found))
