"""Dates as numbers: days since 1970-01-01, with the time of day as a fraction."""

import re
from datetime import UTC, datetime

_ISO = re.compile(
    r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?:[T ](\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,6}))?)?)?\s?(Z|[+-]\d{2}:?\d{2})?"
)
_GERMAN = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})")
_SLASHES = re.compile(r"\d{1,2}/\d{1,2}/(\d{4}|\d{2})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def looks_like_date(word: str) -> bool:
    """Whether a word is meant as a date that is read: 2024-03-01, 2024/3/1 14:30, 2024-03-01T14:30:00Z, 1.3.2024."""
    return bool(_ISO.fullmatch(word) or _GERMAN.fullmatch(word))


def is_ambiguous(word: str) -> bool:
    """Whether a word is a date of which day and month may be exchanged: 03/04/2024."""
    return _SLASHES.fullmatch(word) is not None


def days(word: str) -> float:
    """Days since 1970-01-01T00:00, of the time as it is written, or of UTC where a zone is.

    Raises: ValueError if it is no date, or one that no calendar has.
    """
    if found := _GERMAN.fullmatch(word):
        day, month, year = map(int, found.groups())
        return (datetime(year, month, day, tzinfo=UTC) - _EPOCH).days
    found = _ISO.fullmatch(word)
    if found is None:
        raise ValueError(f"{word!r} is no date")
    *parts, fraction, zone = found.groups()
    year, month, day, hour, minute, second = (int(part or 0) for part in parts)
    when = datetime(year, month, day, hour, minute, second, int((fraction or "").ljust(6, "0")), UTC)
    if zone and zone != "Z":
        sign = -1 if zone[0] == "-" else 1
        digits = zone[1:].replace(":", "")
        offset = sign * (int(digits[:2]) * 60 + int(digits[2:]))
    else:
        offset = 0
    span = when - _EPOCH
    return span.days + (span.seconds + span.microseconds / 1e6 - 60 * offset) / 86400
