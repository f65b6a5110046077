"""Upper-case records -> the letter case in which people write."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipelines.ingest.lead_words import make

_ACRONYMS = (  # without those that are words too: CAN, LED, US, AM, ETC, MAP
    "ABS AC ADAS AEB ATF ATV AWD BCM CD CEL CNG CPS CV CVT DOHC DOT DPF DRL DSC DTC DVD EBS ECM ECU EGR EPA EPS ESC "
    "ESP EV EVAP FCA FCW FMVSS FOIA FWD GM GPS GVWR HID HVAC ICM IIHS LKA LPG MAF NHTSA OBD OEM OK PCM PCV PHEV PRNDL "
    "PTU RV RWD SRS SUV TCM TCS TIPM TPM TPMS TSB TV USA USB VDC VIN VSA VSC VW XXX"
)
_PROPER = (
    "January February March April June July August September October November December Monday Tuesday Wednesday "
    "Thursday Friday Saturday Sunday Takata Firestone Goodyear Michelin Bridgestone OnStar Bluetooth"
)  # "may" is rather the verb
_WRITTEN = {
    **{word.lower(): word for word in (*_ACRONYMS.split(), *_PROPER.split())},
    "i": "I", "i'm": "I'm", "i've": "I've", "i'd": "I'd", "i'll": "I'll", "a/c": "A/C", "o/d": "O/D",
}  # fmt: skip

_WORD = re.compile(r"[a-z0-9]+(?:['/-][a-z0-9]+)*")
_SENTENCE_START = re.compile(r"(^|(?<!\bapprox)(?<!\bno)(?<!\binc)(?<!\bst)[.!?][\"')]*\s+)([\"'(\[]*[a-z])")
_FAULT_CODE = re.compile(r"[pbcu][0-3][0-9a-f]{3}")
_LETTERS_FIRST = re.compile(r"[a-z]{1,3}-?[0-9][a-z0-9-]*")  # F-150, V6, P0301, R134A
_DRIVE = re.compile(r"[24](?:wd|x[24])|[0-9.]+[lv]|[0-9]+w-?[0-9]+")  # 4WD, 4X4, 5.7L, 12V, 5W30
_UPPER = re.compile("[A-Z]")
_LOWER = re.compile("[a-z]")

_SHORT_NAMES = (
    "air am big bus cab car de el eos fe fit fox geo ion key kia la le max neo new pro ram rio sky van vue and of the"
)
_SHORT_WORDS = frozenset(_SHORT_NAMES.split())
_VOWELS = frozenset("aeiouy")
_NO_NAME = frozenset(("", "unknown", "other", "n/a", "na", "none", "not available", "not applicable"))


def sentence_case(text: str, names: Mapping[str, str]) -> str:
    """`text` in sentence case where it is all capitals; `names` says how to write its words (in lower case) instead."""
    if not text.isupper() and 4 * len(_LOWER.findall(text)) > len(_UPPER.findall(text)):
        return text

    def written(match: re.Match[str]) -> str:
        word = match.group()
        if known := names.get(word) or _WRITTEN.get(word):
            return known
        if word.isalpha():
            return word
        is_code = _FAULT_CODE.fullmatch(word) or _LETTERS_FIRST.fullmatch(word) or _DRIVE.fullmatch(word)
        return word.upper() if is_code else word

    lowered = _WORD.sub(written, text.lower())
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), lowered)


def words_of(*names: str | None) -> dict[str, str]:
    """The words of `names` by their lower case, for `sentence_case`."""
    return {word.lower(): word for name in names if name for word in name.split() if word.lower() not in _SHORT_WORDS}


def make_name(raw: str) -> str | None:
    """A make as the maker writes it; None where the record names none."""
    words = " ".join(raw.split())
    if words.lower() in _NO_NAME:
        return None
    known = make(words)
    return known if known != words else _name(words)


def model_name(raw: str) -> str | None:
    """A model in mixed case, `GRAND CHEROKEE` as `Grand Cherokee`; None where the record names none."""
    words = " ".join(raw.split())
    return None if words.lower() in _NO_NAME else _name(words)


def _name(words: str) -> str:
    if _LOWER.search(words):
        return words  # somebody has chosen the case already
    return " ".join("-".join(map(_name_word, word.split("-"))) for word in words.split(" "))


def _name_word(word: str) -> str:
    """Initials and numbers (GTI, CR, RAV4) stay in capitals: up to three letters are a name only if known as one."""
    is_name = word.isalpha() and len(word) > 3 and not _VOWELS.isdisjoint(word.lower())
    return word.capitalize() if is_name or word.lower() in _SHORT_WORDS else word
