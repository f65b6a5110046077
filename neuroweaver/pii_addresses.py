"""E-mail and postal addresses in free text; `MAY_HOLD` is the wider net for RE2."""

from __future__ import annotations

import re
from collections.abc import Iterator

from neuroweaver.pii_text import MASK, PiiText, Span
from neuroweaver.pii_words import CARS, word_set

# The look-behind makes a long run of letters one try, not a try for each letter.
_EMAIL = re.compile(
    rf"(?<![\w.%+'\-{MASK}])'{{0,2}}(?P<address>[\w.%+'\-]++"
    r"(?: ?@ ?(?:[\w\-]{1,63}\.){1,8}[^\W\d_]{2,24}|@[\w\-]{1,63},(?:com|net|org|edu|gov)\b))"
)
_AT = r" ?[(\[{<] ?at ?[)\]}>] ?"
_DOT = r"(?:\.| ?[(\[{<]? ?\bdot\b ?[)\]}>]? ?)"
_MAIL = re.compile(r"\be?-?mails?(?:[ :]{1,2}[a-z]{1,12}){0,3}[ :]{1,2}\Z")
_AT_IN_BRACKETS = re.compile(r"[(\[{<] ?at ?[)\]}>]")
_SPELLED_EMAIL = re.compile(
    rf"(?<![\w.%+\-{MASK}])(?:(?P<bracketed>[\w.%+\-]++{_AT}[\w\-]{{1,63}}(?:{_DOT}[\w\-]{{1,63}}){{1,4}})"
    r"|(?P<local>(?:\w{1,64} dot ){0,3}[\w.%+\-]++) at [\w\-]{1,63}(?: dot [\w\-]{1,63}){0,3}"
    r" dot (?:com|net|org|edu|gov|us|io|me))\b"
)


def emails(read: PiiText) -> Iterator[Span]:
    """Addresses as typed, and mildly disguised ones: `jo (at) example.com`, `jo.smith at example dot com`."""
    text, low = read.text, read.low
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield match.span("address")
    if "at" in read.words and ("dot" in read.words or _AT_IN_BRACKETS.search(low)):
        for match in _SPELLED_EMAIL.finditer(low):
            # "the price at cargurus dot com" names a site: there, only what can't be a word is somebody's mailbox.
            before = max(0, match.start() - 48)
            if match["bracketed"] or not match["local"].isalpha() or _MAIL.search(low, before, match.start()):
                yield match.span()


# Suffixes of USPS Publication 28, Appendix C1, that are in common use. The weak ones are words of the trade as well.
_STRONG = (
    "street|str|avenue|aven|ave|av|road|rd|lane|ln|court|ct|boulevard|blvd|terrace|terr|ter|parkway|pkwy|circle|cir"
    "|square|plaza|plz|crossing|alley|heights|hts|turnpike|tpke|causeway"
)
_WEAK = (
    "st|drive|drv|dr|way|place|pl|trail|trl|loop|path|pike|cove|cv|run|ridge|rdg|hill|bend"
    "|highway|hwy|xing|landing|lndg|commons|glen|hollow"
)
_DIRECTION = r"(?:north(?:east|west)?|south(?:east|west)?|east|west|[ns]\.?[ew]?\.?|[ew]\.?)"
_WORD = r"(?:[a-z][a-z'.\u2019\-]{0,24}|[0-9]{1,3}(?:st|nd|rd|th))"
_WORD_NET = r"[0-9a-z'.\x{2019}\-]+"
_ROUTE = (
    r"(?:(?:state|us|u\.s\.|county|old|ranch|farm)[ ])?(?:state[ ])?"
    r"(?:highway|hwy|route|rte|rt|road|rd|fm|cr|sr)[ ](?:[0-9]{1,4}[a-z]?|[a-z]{1,2})"
)
_STATES = (
    "al|ak|az|ar|ca|co|ct|de|dc|fl|ga|hi|id|il|in|ia|ks|ky|la|me|md|ma|mi|mn|ms|mo|mt|ne|nv|nh|nj|nm|ny|nc|nd|oh|ok|or"
    "|pa|ri|sc|sd|tn|tx|ut|vt|va|wa|wv|wi|wy"
)
_UNIT = r"[,\s]{1,3}(?:(?:apt|apartment|unit|suite|ste|bldg|building|lot|trlr|rm|fl)\b\.?[ ]?#?|#[ ]?)[0-9a-z\-]{1,6}\b"
_STREET = re.compile(
    # A letter of a rural grid may stand before the number (N4452), but no other sign of a word, a price, a part number.
    r"(?P<number>[0-9](?<![0-9$.,#/\-_a-df-mo-rt-vx-z].)(?<!\w\w.)[0-9]{0,5})"
    r"(?:-[0-9]{1,4})?(?:\u00bd|[ ]1/2|[ ]?[nsew][0-9]{2,5}|[a-z])?"
    r",?[ ]{1,2}(?:"
    rf"(?P<route>{_ROUTE}\b)"
    rf"|(?P<grid>(?P<from>{_DIRECTION})[ ][0-9]{{2,5}}[ ](?P<to>{_DIRECTION})(?![a-z]))"
    rf"|(?P<avenue>(?:avenue|ave|rue|via|camino|calle|paseo)[ ](?:of[ ]the[ ]|de[ ]la[ ]|del[ ]|de[ ])?{_WORD})"
    rf"|(?P<words>(?:{_WORD}[ ]{{1,2}}){{1,5}}?)"
    rf"(?:(?P<strong>{_STRONG})|(?P<weak>{_WEAK})(?![ ](?:{_STRONG}|{_WEAK})\b))\b(?!')\.?"
    rf")(?:[ ]{_DIRECTION}(?![a-z0-9']))?"
)
_UNITS = re.compile(rf"(?:{_UNIT}){{1,2}}")
_CITY = re.compile(
    rf"(?:[,.\s]{{1,3}}(?:[a-z][a-z.'\-]{{1,20}}[ ]){{0,2}}[a-z][a-z.'\-]{{1,20}},?[ ](?P<state>{_STATES})\b"
    r"(?:[ ,.]{1,2}(?P<zip>[0-9]{5})(?:-[0-9]{4})?(?!\w))?)"
)
_BOX = re.compile(
    r"(?<![a-z0-9])(?:p\.?[ ]?o\.?[ ]?(?:box|drawer)|(?:rr|r\.r\.|rt|rte|route|hc|rural route)[ ]#?[0-9]{1,4},?[ ]box)"
    r"[ ]?#?[0-9]{1,6}[a-z]?\b"
)
_CUE = re.compile(
    r"(?:\b(?:at|to|from|lives?(?: on)?|(?:address|place|house|home|residence)(?: is)?|street)|@)[ :\-]{1,3}\Z"
)
# Between a number and a suffix they tell a distance, a time, a car: "10 miles down the road", "4 wheel drive".
_NO_STREET = word_set(
    """a about above across after ahead all along and any are around at away back bad been before below between both
    but by can car cars coupe cyl cylinder day days dealer dealers degree degrees dirt door doors down dr each every
    feet few for four from front ft full gas get go good gravel half hd heavy hour hours hr hrs i if in inch inches
    is it its key keys km lane lanes left less many me mi mile miles min mins minute minutes month months more mpg
    my no of off on one only or our out over owner owners passenger people per piece pieces rear right row rows seat
    seats sedan since so speed still take test than that the their them then there they this three time times to ton
    too total trim truck trucks two until up used van vans want was way ways we week weeks wheel wheels when with
    work yards year years yet you your"""
)
_CAR_AND_STREET = word_set("lincoln liberty sierra park grand pilot ranger ford century golf montana")


def postal_addresses(read: PiiText) -> Iterator[Span]:
    """Street addresses of the United States, with unit, city, state and ZIP code where they follow, and boxes."""
    text, low = read.text, read.low
    position = 0
    while match := _STREET.search(low, position):
        start, position = match.span("number")
        is_rural = low[max(0, start - 1) : start].isalpha()
        end = _end_of_address(text, low, match.end())
        if _is_street(match, text, low, is_sure=end > match.end()) and not (is_rural and match["weak"]):
            yield start - is_rural, end
            position = end
    if "box" in read.words or "drawer" in read.words:
        for match in _BOX.finditer(low):
            yield match.start(), _end_of_address(text, low, match.end())


def _end_of_address(text: str, low: str, end: int) -> int:
    """Where unit, city, state and ZIP code end. A state without a ZIP code is in capitals: "call me" is no town."""
    if units := _UNITS.match(low, end):
        end = units.end()
    city = _CITY.match(low, end)
    if city and (city["zip"] or text[slice(*city.span("state"))].isupper()):
        end = city.end()
        if units := _UNITS.match(low, end):
            end = units.end()
    return end


def _is_street(match: re.Match[str], text: str, low: str, *, is_sure: bool) -> bool:
    number = match["number"]
    is_of_a_car = len(number) == 4 and ("1950" <= number <= "2030" or number in ("1500", "2500", "3500"))
    if match["grid"]:
        return (match["from"][0] in "ns") != (match["to"][0] in "ns")
    if match["route"]:
        return is_sure or (len(number) > 2 and not is_of_a_car)
    if match["avenue"]:
        return is_sure or (len(number) > 1 and text[match.start("avenue")].isupper() and not is_of_a_car)
    words = set(match["words"].replace(".", "").split())
    cars = words & CARS
    if words & _NO_STREET or not cars <= _CAR_AND_STREET:
        return False
    if is_sure or _CUE.search(low, max(0, match.start() - 20), match.start()):
        return True
    return not is_of_a_car and (match["strong"] is not None or _is_titled(text[slice(*match.span())]))


def _is_titled(street: str) -> bool:
    """A street whose suffix is also a word of the trade has to be written as a name: `15 Elm Drive`."""
    return all(not word[0].islower() for word in street.split())


_ANY_STREET = rf"{_ROUTE}|{_DIRECTION}[ ][0-9]{{2}}|(?:avenue|ave|rue|via|camino|calle|paseo)[ ]"
MAY_HOLD = (
    "@"
    r"|(?i:[(\[{<] ?at ?[)\]}>]| dot (?:com|net|org|edu|gov|us|io|me))"
    r"|(?i:[0-9](?:\x{bd}|[ ]1/2|[a-z])?,?[ ]{1,2}"
    rf"(?:{_ANY_STREET}|(?:{_WORD_NET}[ ]{{1,2}})+(?:{_STRONG}|{_WEAK})(?:[^a-z0-9_]|$)))"
    r"|(?i:(?:box|drawer) ?#?[0-9])"
)
