"""NHTSA's complaint and recall texts -> what a customer would say of the fault.

Taken out is what the agency's clerks add (their marks, form questions, and sentences that open and close every report
taken by telephone), and what gives the label away: campaign numbers with the component in parentheses, a component's
name at the start, the title of a safety standard. What the owner or the maker says of the fault stays as it is.
"""

from __future__ import annotations

import re

from pipelines.nhtsa_components import NAME

_LONGEST_MARK = 40
_LONGEST_PHRASE = 400  # characters: the sentences that are the same for everybody are short

# Clerks' marks: *AK, *TR, (*JB), *SLC, and TT without a star at the very end; TL* and DT*: at the start.
_OPENING = re.compile(r"^\W*(?:[A-Z]{2}\s*\*+\s*[:-]*|(?:TL|DT)\s*[:-]+)\s*")
_MARK = re.compile(r"\(?\*+\s?[A-Z]{2,3}\b\)?(?=\s*(?:$|[*(.]|UPDATED?\b)|\s{2})")
_LAST_MARK = re.compile(
    r"(?:^|(?<=[.!?\")])\s*|\s{2,})(?:TT|AK|TR|JB|NM|JS|DT|PH|BF|SC|YH|KB|LN|LJ|CN|SLC|MJS)(?=[\s.]*$)[\s.]*$"
)
_UPDATED = re.compile(r"\.*\bUPDATED?:?\s+\d\d?[/-]\d\d?[/-]\d\d(?:\d\d)?\b\.?", re.IGNORECASE)
_REDACTED = re.compile(
    r"INFORMATION REDACTED PURSUANT TO THE FREEDOM OF INFORMATION ACT(?:\s*\(FOIA\))?,?(?:\s*5\s*U\.?S\.?C\.?)?"
    r"(?:\s*552\s*\(B\)\s*\(6\))?(?:\s*AND 49 C\.F\.R\. 512\.8)?\.?",
    re.IGNORECASE,
)
_FORM = re.compile(
    r"\bPLEASE (?:DESCRIBE|(?:PROVIDE|GIVE)(?: ANY| MORE| US)?(?: FURTHER| ADDITIONAL| MORE)?)"
    r"(?: (?:THE )?(?:DETAILS?|INFORMATION))?\s*(?:\.|$)",
    re.IGNORECASE,
)
_FORM_FIELD = re.compile(r"\(\s*(?:DOT NUMBER|RELATED VEHICLE INFORMATION):[^()]{0,200}\)", re.IGNORECASE)
# In this order; a search for the sign is much quicker than one for the pattern.
_ADDED = (("REDACTED", _REDACTED), ("*", _MARK), ("UPDATE", _UPDATED), ("PLEASE", _FORM), (":", _FORM_FIELD))

# 94V-129, 14V153000, 21V00B000: the year, V, E, T or C, and a number; alone it is told only by its full length.
_LONG = r"\b\d\d[VETCXI]-?\d\d[0-9A-Z][.-]?\d{3}\b"
_SHORT = r"\b\d\d[VETCXI]-?\d\d[0-9A-Z]\b"
_ASIDE = r"(?:\s*\((?:[^()]|\([^()]*\)){0,120}\))?"
_NUMBERS = rf"(?:{_LONG}|{_SHORT}){_ASIDE}(?:\s*(?:,|;|&|\bAND\b|\bOR\b)\s*(?:{_LONG}|{_SHORT}){_ASIDE})*"
_CAMPAIGNS = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (
            r"(?:\b(?:THE|A) )?\b(?:NHTSA )?(?:SAFETY )?(?:RECALL )?CAMPAIGNS?(?: RECALL)?(?: ID(?:ENTIFICATION)?)?"
            rf"(?: (?:NUMBERS?|NOS?\.?|#))?\s*[:#]?\s*{_NUMBERS}",
            "a recall",
        ),
        (rf"\b(RECALLS?)(?: (?:NUMBERS?|NOS?\.?|ID|#))?\s*[:#]?\s*{_NUMBERS}", r"\1"),
        (rf"\(\s*(?:(?:NHTSA|RECALL|CAMPAIGN|NUMBERS?|NO\.?|ID|#|:)\s*)*{_NUMBERS}\s*\)", " "),
        (rf"(?:\bNHTSA )?(?:{_LONG}|\b\d\d[VE]-\d{{3}}\b){_ASIDE}", "a recall"),
        (r"\brecall (?:for |under )?a recall\b", "recall"),
        (r"\(?\s*\b(?:PE|EA|DP|RQ|AQ)\s?\d\d-?\d{3}\b\s*\)?", " "),  # the agency's investigations
    )
)
_HAS_NUMBER = re.compile(r"\b(?:\d\d[VETCXI]-?\d|(?:PE|EA|DP|RQ|AQ)\s?\d\d-?\d{3})", re.IGNORECASE)
_PATH = rf"{NAME}(?:\s*:[^():;.]{{1,60}})*"
_NAME_ASIDE = re.compile(rf"\(\s*{_PATH}(?:\s*(?:,|&|\bAND\b)\s*{_PATH})*\s*\)")
_NAME_FIRST = re.compile(
    rf"^(?i:(?:FAILED )?(?:COMPONENT|SYSTEM)S?(?: NAME| DESCRIPTION)?\s*[:=]\s*{NAME}|(?-i:{NAME}))"
    r"(?::[^\s:.;](?:(?!\s-)[^:.;]){0,60})*(?:\s*[:;.]|\s+-+(?=\s))\s*"
)

_ABBREVIATED = ("INC", "CO", "CORP", "LTD", "NO", "NOS", "MR", "MRS", "DR", "ST", "VS", "APPROX")
# Of a text with single blanks. A campaign number has become `a recall` by then, also where it opened a sentence.
_NOT_AFTER = "".join(rf"(?<!\b(?i:{word})\. )(?<!\b(?i:{word})\.\) )" for word in _ABBREVIATED)
_SENTENCE_END = re.compile(rf" (?:(?<=[.!?] )|(?<=[.!?][\"')] )){_NOT_AFTER}(?:(?![a-z])|(?=a recall\b))")

_WHO = r"(?:the )?(?:contact|consumer|caller|owner|complainant)s?"
_VEHICLE = r"(?: (?!and|which|that|when|while|with|because|but)[\w./&-]+){1,7}"
_TOLD = r"(?:notified|contacted|made aware|informed|alerted)"
_FAULT = r"(?:failures?|issues?|problems?|incident|defect|complaint|matter)"
_SAME_FOR_EVERYBODY = re.compile(
    "|".join(
        (
            rf"{_WHO} (?:currently )?(?:owns|owned|leases|leased|rented|purchased|bought|drives|has|had) an? "
            rf"(?:new |used )?(?:\d{{4}}|'\d\d){_VEHICLE}",
            rf"{_WHO} (?:owns|owned|leases|leased) an?{_VEHICLE}",
            r"(?:the )?(?:(?:approximate|estimated|current|failure|failed|vehicle'?s?|purchase|and|or|vin and) )*"
            r"mileages? ?(?:at (?:the )?(?:time of )?(?:the )?failure )?(?:was|were|is|are|and)\b.*"
            r"(?:\d|unknown|available|provided).*",
            r"(?:the )?(?:vin|nhtsa campaign number|dot number)\b.*\b(?:unknown|(?:un)?available|invalid|provided)",
            rf"(?:the |an? )?[^,;]{{1,60}} (?:was|were|had been|has been) (?:also )?(?:not )?(?:yet )?{_TOLD}"
            rf"(?:,? (?:of|about) the {_FAULT})?",
            rf"the (?:manufacturer|dealer)\b.{{0,40}}\b{_TOLD}\b.*"
            r"\b(?:assistance|hotline|case|claim|referred|available)\b.*",
            r"the (?:vehicle|motorcycle|cause of the failure|cause|failure|issue|problem) (?:was|had|has|could) not "
            r"(?:yet )?(?:been |be )?(?:yet )?(?:repaired|diagnosed|inspected|determined|remedied|duplicated)"
            r"(?:,? (?:or|nor|and|and/or) (?:repaired|diagnosed|inspected|tested))*",
            r"no (?:further|additional|other) (?:information|details|assistance)\b.*",
            r".*\bexceeded a reasonable amount of time\b.*",
            r"takata recall|part(?:s|) distribution disconnect|vin tool confirms .*",
            r"(?:the )?(?:part|remedy)s?\b.{0,60}\b(?:was|were|are|is) (?:not (?:yet )?available|unavailable)",
            r"(?:the (?:recall|failure) (?:was|is) (?:under|related to) )?a recall",
            r".{0,80}\b(?:was|is) not (?:included|covered) (?:in|by|under) (?:a|the|any) recall",
            rf"{_WHO} received (?:a |an )?(?:recall )?(?:notification|notice|letter) (?:of|for|about) a recall",
            rf"{_WHO} received .*\b(?:part|remedy|repair)s?\b.*\b(?:unavailable|not (?:yet )?available).*",
        )
    ),
    re.IGNORECASE,
)
_LEAD_IN = re.compile(
    rf"^{_WHO} (?:also |further |then )?(?:states?d?|indicate[ds]|report(?:ed|s)|mentioned|noted|advised|says|said)"
    r"(?: that|,)? (?=\S+ \S+ \S+)",
    re.IGNORECASE,
)
_NO_FAILURE = re.compile(
    r"\b(?:(?:had|has|have) not experienced|did not experience) (?:a|the|any) failure", re.IGNORECASE
)

_OPENS_RECALL = re.compile(
    r"\b(?:recalled|(?:has|have|had) (?:decided|issued|initiated)|notified the agency)\b", re.IGNORECASE
)
_IS_ABOUT_RECALL = re.compile(
    r"\b(?:is|are) (?:(?:conducting|initiating|issuing) an? )?(?:\w+ )?recall(?:ing)?\b|\bare being recalled\b|"
    r"\bexpanded (?:the|this|its) recall|\binclusion in this recall|\bsee the recall report|^vehicle description:",
    re.IGNORECASE,
)
_STANDARD_NUMBERS = re.compile(
    r"((?:Safety Standards?(?: \(FMVSS\))?|\bFMVSS\b))(?:,? *(?:numbers?|nos?\.?|#)? *\d{3}[a-z]?"
    r"(?:,? *(?:\"[^\"]{1,120}\"|'[^']{1,120}'))?(?:,? and(?= *(?:numbers?|nos?\.?|#)? *\d{3}))?)+",
    re.IGNORECASE,
)
_FAILS_STANDARD = re.compile(
    r"^(?:(?:as such|thus|therefore|as a result),? )?(?:these|the affected|the|this) [\w ]{0,30}"
    r"(?:fails?|do not|does not|may not) (?:to )?(?:comply|conform|meet)\b.*",
    re.IGNORECASE | re.DOTALL,
)

_LOOSE = re.compile(r"\(\s*\)|\s+(?=[.,;:!?)])")
_EDGES = " \t,;:-*/"


def complaint_text(raw: str) -> str:
    """What the owner says of the fault, in one line; empty where the report tells of no fault."""
    text = _OPENING.sub("", raw.strip(), count=1)
    signs = text.upper()
    for sign, pattern in _ADDED:
        if sign in signs:
            text = pattern.sub(" ", text)
    text = text.rstrip()
    while (shorter := _LAST_MARK.sub("", text[-_LONGEST_MARK:])) != text[-_LONGEST_MARK:]:
        text = text[:-_LONGEST_MARK] + shorter
    text = _without_label(_one_line(text))
    if "EXPERIENCE" in signs and _NO_FAILURE.search(text):
        return ""  # a recall's parts are awaited; nothing is wrong with this car yet
    return _tidy(" ".join(map(_without_lead_in, filter(_tells_something, _sentences(text)))))


def recall_text(raw: str) -> str:
    """What the maker says of the defect, in one line, without who recalls what and which standard it breaks."""
    sentences = _sentences(_STANDARD_NUMBERS.sub(_without_title, _without_label(_one_line(raw))))
    if len(sentences) > 1 and _OPENS_RECALL.search(sentences[0]):
        sentences = sentences[1:]
    told = [s for s in sentences if not _IS_ABOUT_RECALL.search(s) and not _FAILS_STANDARD.match(s)]
    return _tidy(" ".join(told or sentences))


def _without_title(match: re.Match[str]) -> str:
    """A title in quotation marks may hold the sentence's full stop."""
    return match[1] + ("." if match.group().endswith(('."', ".'")) else "")


def _without_label(text: str) -> str:
    if _HAS_NUMBER.search(text):
        for pattern, replacement in _CAMPAIGNS:
            text = pattern.sub(replacement, text)
    text = _NAME_ASIDE.sub(" ", text)
    rest = _NAME_FIRST.sub("", text, count=1)
    return rest if len(rest.split()) > 2 else text


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def _tells_something(sentence: str) -> bool:
    words = sentence.strip(" .!?")
    return bool(words) and (len(words) > _LONGEST_PHRASE or not _SAME_FOR_EVERYBODY.fullmatch(words))


def _without_lead_in(sentence: str) -> str:
    rest = _LEAD_IN.sub("", sentence, count=1)
    return rest[:1].upper() + rest[1:]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _tidy(text: str) -> str:
    return _one_line(_LOOSE.sub("", text)).strip(_EDGES)
