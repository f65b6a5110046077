"""Personal numbers in free text: cards, social security numbers, VIN serials, accounts and telephones.

`MAY_HOLD` is a wider net that RE2 can draw through a whole column: no look-around, ASCII classes only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from neuroweaver import vin
from neuroweaver.pii_text import DASH, MASK, SPACE, PiiText, Span
from neuroweaver.pii_words import word_set

MAY_HOLD = (
    rf"[0-9](?:[{SPACE}.()/{DASH}]{{0,4}}[0-9]){{6}}"  # cards, telephones, whole social security numbers
    r"|[0-9A-Za-z]{13}[0-9]{4}"  # VINs
    r"|(?is:last (?:8|6|eight|six)|(?:^|[^a-z])(?:vin|serial)).*[0-9]{5}"
    # A word that announces a number, and a digit after it.
    r"|(?i:(?:^|[^a-z])(?:ssn?[^a-z]|soc(?:ials?)?[^a-z]|itin|s\.s\.n|acc(?:ou|t|[^a-z])|policy|routing|aba|d\.?l[^a-z])"
    r"|tax id|xx|\*\*|driver'?s? licen[cs]e|(?:loan|lease|contract|licen[cs]e)[ .:_]{0,2}(?:num|nbr|no|#))[^0-9]*[0-9]"
)


def passes_luhn(number: str) -> bool:
    """The checksum of ISO/IEC 7812-1, Annex B; signs other than digits are skipped."""
    digits = [int(sign) for sign in number if sign in "0123456789"][::-1]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return bool(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _follows(word: re.Pattern[str], low: str, start: int) -> bool:
    """Whether `word`, a pattern that ends with the end of the text, stands right before `start`."""
    return word.search(low, max(0, start - 36), start) is not None


_CARD = re.compile(rf"(?<!\w)(?<![0-9][{DASH}])(?=([2-6][0-9]{{3,18}}(?:[{SPACE}{DASH}][0-9]{{3,12}}){{0,5}}))[0-9]+")
_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|35"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"3(?:0[0-5]|[689])"), (14,)),
    (re.compile(r"6|50|5[6-8]"), (16, 17, 18, 19)),
)
_DIGITS = re.compile(r"[0-9]+")


def cards(read: PiiText) -> Iterator[Span]:
    """Numbers of an issuer's length that end with a group of digits, so that an expiry date after them stays out."""
    text = read.text
    for first, last in read.numbers:
        if last - first < 13:
            continue
        for match in _CARD.finditer(text, first, last):
            start, number = match.start(), ""
            for group in _DIGITS.finditer(match[1]):
                number += group.group()
                end = start + group.end()
                if len(number) >= 13 and _is_card(number) and not text[end : end + 1].isalnum():
                    yield start, end
                    break


def _is_card(number: str) -> bool:
    return any(len(number) in lengths and issuer.match(number) for issuer, lengths in _ISSUERS) and passes_luhn(number)


# Valid numbers begin with neither 000, 666 nor 9, and no group is all zeros (SSA POMS RM 10201.035).
_SSN = re.compile(
    rf"(?<![\w{DASH}])(?!000|666|9)[0-9]{{3}}([ {DASH}])(?!00)[0-9]{{2}}\1(?!0000)[0-9]{{4}}(?![\w{DASH}])"
)
_SSN_WORDS = word_set("ssn ss social socials soc itin tax")
_SSN_WORD = re.compile(
    r"(?:s(?:s[ ]?(?:#|no\b|num)|sn\b|\.s\.n\b|ocials?\b|oc\b)|itin\b|tax id\b)(?:\.|[ ]security\b|[ ]sec\b)?"
)
# After the word any grouping of nine digits will do, an ITIN (it begins with 9) too.
_SSN_AFTER_WORD = re.compile(
    rf"[^0-9{MASK}]{{0,30}}"
    rf"(?P<nine>[0-9]{{3}}[ .{DASH}]?(?:[0-9]{{2}}[ .{DASH}]?[0-9]{{4}}|[0-9]{{3}}[ .{DASH}]?[0-9]{{3}}))"
    rf"(?![0-9]|[.{DASH}][0-9])"
    rf"|[a-z ]{{0,12}}\bend(?:s|ing|ed)?(?: in| with)?[ :]{{1,3}}(?P<end>[0-9]{{4}})(?!\w)"
    rf"|[^0-9{MASK}]{{0,12}}(?P<last>[0-9]{{4}})(?!\w)"
)
_LAST_FOUR = re.compile(rf"\blast (?:4|four)\b[^0-9.{MASK}]{{0,20}}\Z")
_MASKED_SSN = re.compile(rf"(?:x{{3}}|\*{{3}})[ {DASH}]?(?:xx|\*\*)[ {DASH}]?(?P<last>[0-9]{{4}})(?!\w)")


def social_security_numbers(read: PiiText) -> Iterator[Span]:
    """Whole numbers, and the last four digits where the text says that they are these."""
    low = read.low
    for first, last in read.numbers:
        for whole in _SSN.finditer(read.text, first, last + 1):
            yield whole.span()
    if not read.words.isdisjoint(_SSN_WORDS) or "s.s.n" in low:
        for word in _SSN_WORD.finditer(low):
            match = None if low[word.start() - 1 : word.start()].isalnum() else _SSN_AFTER_WORD.match(low, word.end())
            if match and (match.lastgroup != "last" or _follows(_LAST_FOUR, low, word.start())):
                yield match.span(match.lastgroup or 0)
    if "xxx" in read.words or "xxxxx" in read.words or "***" in low:
        for masked in _MASKED_SSN.finditer(low):
            yield masked.span("last")


# The last four signs of a VIN are digits (49 CFR 565.15), so the search begins with them.
_VIN = re.compile(r"[0-9][0-9]{3}(?<=[0-9a-z]{17})(?<![0-9a-z]{18})(?![0-9a-z])")
_VIN_END = re.compile(
    r"\b(?:last (?:8|6|eight|six)\b"
    rf"|(?:vin|serial)\b[^0-9.{MASK}]{{0,20}}\b(?:end(?:s|ing)?(?: in| with)?|last (?:8|6|eight|six))\b)"
    r"(?: digits)?(?: of)?(?: my| the| that)?(?: vin\b| serial\b)?(?: number\b| no\b|#)?(?: is\b| are\b)?[ :#=]{1,3}"
    r"(?:[0-9a-hj-npr-z]{2})?(?P<serial>[0-9a-hj-npr-z][0-9]{5})(?![0-9a-z])"
)
_VIN_WORDS = word_set("vin serial last")
_SERIAL = 6


def vin_serials(read: PiiText) -> Iterator[Span]:
    """The last six signs, which name one car; the eleven before tell make, model and year, and stay."""
    low = read.low
    for match in _VIN.finditer(low):
        end = match.end()
        if _is_vin(low[end - vin.LENGTH : end].upper()):
            yield end - _SERIAL, end
    if not read.words.isdisjoint(_VIN_WORDS):
        for match in _VIN_END.finditer(low):
            yield match.span("serial")


def _is_vin(number: str) -> bool:
    """Letters and digits mixed; of those typed with I, O or Q only ones that end in five digits."""
    head = number[:-_SERIAL]
    if head.isdigit() or head.isalpha():
        return False
    return vin.SIGNS.fullmatch(number) is not None or number[-5:].isdigit()


# A cue word, what may stand between, and a number with letters, dashes or blanks in it. Loans, leases, contracts and
# licences also need "number" or "#": their amounts, terms and plates stand beside the word just as well.
_ACCOUNT = re.compile(
    r"(?<![^\W_])(?:(?:accounts?|accts?|acc|policy|routing|aba|driver'?s? licen[cs]e|d\.?l)"
    r"|(?:loan|lease|contract|licen[cs]e)(?=[ .:_]{0,2}(?:num|nbr|no|#)))"
    r"\.?(?:[ .:_]{0,2}(?P<number>(?:numbers?|num|nbr|no|id)(?![a-z])|#)(?:[ a-z]{0,32}\b(?:is|was)\b)?)?"
    r"(?:[ ](?:is|was)\b)?(?P<end> end(?:s|ing)?\b(?: in| with)?)?(?![a-z])[\"' .:=#\-]{0,6}"
    r"(?P<token>(?:[a-z]{1,5}-?|(?P<prefix>[a-z]{2,4}) )?[0-9][0-9a-z]{0,24}"
    r"(?:-[0-9a-z]{1,16}|[ ][0-9]{2,12}(?![0-9a-z/.,:]|[ ](?:day|mo|year|yr|pay|times))){0,5})"
    r"(?![0-9a-z]|[,./][0-9]|%|[ ]?(?:miles?|mi|km|k)\b)"
)
_ACCOUNT_WORDS = word_set(
    "account accounts acct accts acc accountnumber policy policynumber routing routingnumber aba loan loannumber lease"
    " leasenumber contract contractnumber license licence licensenumber dl d"
)


def account_numbers(read: PiiText) -> Iterator[Span]:
    """Loan, lease, bank, policy and driver licence numbers, each after a word that says so."""
    if read.words.isdisjoint(_ACCOUNT_WORDS):
        return
    for match in _ACCOUNT.finditer(read.low):
        is_named = match["number"] or match["end"]
        digits = sum(map(str.isdigit, match["token"]))
        prefix = read.text[slice(*match.span("prefix"))]
        if digits >= (4 if is_named else 6) and (not match["prefix"] or prefix.isupper()):
            yield match.span("token")


_GAP = rf"(?:[{SPACE}]{{0,2}}[./{DASH}][{SPACE}]{{0,2}}|[{SPACE}]{{1,2}})"
_PHONE = re.compile(
    rf"(?<![\w$])(?<![0-9][.,/{DASH}])"
    rf"(?:(?:\(?\+?1\)?|001){_GAP}?)?(?:\([0-9]{{3}}\){_GAP}?|[0-9]{{3}}{_GAP})"
    rf"[0-9]{{3}}{_GAP}?[0-9]{{4}}(?![\w]|[{DASH}./][0-9])"
    rf"|(?<![\w$#.,{DASH}])(?:\+?1)?[2-9][0-9]{{9}}(?![\w]|[,{DASH}][0-9])"
    rf"|(?<!\w)(?:\+[1-9]|011{_GAP}[1-9])(?:{_GAP}?\(?[0-9]\)?){{7,14}}(?!\w)"
    rf"|(?<!\w)\(?[2-9](?:[ ()\-]{{1,4}}[0-9]){{9}}(?!\w)"
)
_LOCAL = re.compile(rf"(?<![\w$])(?<![0-9][.,/{DASH}])[0-9]{{3}}(?:{_GAP})?[0-9]{{4}}(?![\w]|[{DASH}./,][0-9])")
_PLAIN = re.compile(rf"[0-9{SPACE}]+")
# Without an area code only where the text says that it is a telephone, or in the block kept for fiction.
_FICTION = re.compile(rf"555[ .{DASH}]?01")
_TELEPHONE_WORD = re.compile(
    r"(?<!\w)(?:call(?:s|ed|back)?|te?xt|phones?|ph|cell?|tel|telephone|mobile|reach|ring|fax|contact|dial|whatsapp"
    rf"|home|work|my number|number is|my #|# is|vm|voicemail|msg|message)\b[^0-9\n{MASK}]{{0,20}}\Z"
)
_EXTENSION = re.compile(rf",?[ ]?(?:x|ext\.?|extension)[ ]?[0-9]{{1,5}}(?![\w]|[{DASH}./][0-9])")
_OTHER_NUMBER = re.compile(
    r"(?:\bparts?|p/n|\bpn|\bstock|\bstk|\bro|\bpo|invoice|order|quote|tracking|confirmation|odometer|claim|case|ref)"
    r"[ .:#]{0,3}(?:number|num|no|#)?[ .:#]{0,3}\Z"
)


def telephones(read: PiiText) -> Iterator[Span]:
    text, low = read.text, read.low
    for first, last in read.numbers:
        # A number may begin with signs that aren't digits, and what follows it decides whether it is one.
        for match in _PHONE.finditer(text, max(0, first - 2), last + 2):
            start, end = match.span()
            if _is_telephone(match.group(), low, start):
                extension = _EXTENSION.match(low, end)
                yield start, extension.end() if extension else end
        for match in _LOCAL.finditer(text, first, last + 2):
            if _FICTION.match(match.group()) or _follows(_TELEPHONE_WORD, low, match.start()):
                yield match.span()


def _is_telephone(found: str, low: str, start: int) -> bool:
    """Digits and blanks alone have to be assignable, and must not be announced as something else."""
    if not _PLAIN.fullmatch(found):
        return True
    digits = "".join(found.split()).removeprefix("00").removeprefix("1")
    if len(digits) < len(found) - 4 and not _follows(_TELEPHONE_WORD, low, start):
        return False  # single digits with blanks between are also the tread of four tires
    return _is_assignable(digits) and not _follows(_OTHER_NUMBER, low, start)


def _is_assignable(digits: str) -> bool:
    """Area code and exchange begin with 2 to 9 (North American Numbering Plan); 555 stands for any invented area."""
    return digits.startswith("555") or (digits[0] not in "01" and digits[3] not in "01")
