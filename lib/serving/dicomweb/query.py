"""The parameters of a search (QIDO-RS, DICOM PS3.18 section 10.6): which results match, which attributes they have, and which page is asked for.

Results are dictionaries in the DICOM JSON model.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fastapi import HTTPException
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

_OPTIONS = ("includefield", "limit", "offset", "fuzzymatching", "accept", "emptyvaluematching", "multiplevaluematching")
_RANGES = ("DA", "TM", "DT")
_WILDCARDS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")


@dataclass(frozen=True)
class Query:
    """A search.

    Attributes:
        filters: Pairs of a tag (eight hexadecimal digits) and the text that its value must match.
        included: Tags that the results should have besides those that they always have, or None for all.
        limit: Largest number of results, or None.
        offset: Number of results to skip.
    """

    filters: tuple[tuple[str, str], ...] = ()
    included: frozenset[str] | None = frozenset()
    limit: int | None = None
    offset: int = 0

    @classmethod
    def parse(cls, parameters: Iterable[tuple[str, str]]) -> "Query":
        """Return the search that the parameters of an address describe; raise HTTPException 400 if there is something wrong with one."""
        filters, included, numbers = [], set(), {"limit": None, "offset": 0}
        for name, value in parameters:
            if name in numbers:
                if not (value.isascii() and value.isdigit() and len(value) < 10):
                    raise HTTPException(400, f"{name} must be a whole number from 0.")
                numbers[name] = int(value)
            elif name == "includefield":
                included |= {None if field == "all" else _tag(field) for field in value.split(",") if field}
            elif name not in _OPTIONS:
                filters.append((_tag(name), value))
        return cls(tuple(filters), None if None in included else frozenset(included), **numbers)

    def value_of(self, keyword: str) -> str | None:
        """Return the text that an attribute must match, or None if the search does not restrict it."""
        tag = f"{tag_for_keyword(keyword):08X}"
        return next((text for t, text in self.filters if t == tag and text), None)

    def matches(self, attributes: dict) -> bool:
        """Return whether attributes match all filters."""
        return all(_matches(attributes.get(tag) or {}, tag, text) for tag, text in self.filters)

    def choose(self, attributes: dict, always: Iterable[str]) -> dict:
        """Return the attributes that a result has: those of the tags `always`, those filtered by, and the included ones, in the order of tags."""
        if self.included is None:
            chosen = set(attributes)
        else:
            chosen = {*always, *(tag for tag, _ in self.filters), *self.included}
        return {tag: attributes[tag] for tag in sorted(chosen & set(attributes))}


def tags(keywords: Iterable[str]) -> tuple[str, ...]:
    """Return the tags of keywords as the DICOM JSON model writes them.

    >>> tags(["PatientName"])
    ('00100010',)
    """
    return tuple(f"{tag_for_keyword(k):08X}" for k in keywords)


def _tag(name: str) -> str:
    """Return the tag of an attribute that is named by keyword or by tag; of a path into sequences, that of the sequence."""
    first = name.split(".")[0]
    number = int(first, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", first) else tag_for_keyword(first)
    if number is None:
        raise HTTPException(400, f"{name[:64]!r} is no attribute of DICOM.")
    return f"{number:08X}"


def _matches(element: dict, tag: str, text: str) -> bool:
    """Return whether an element has a value that matches a text (DICOM PS3.4 section C.2.2.2)."""
    if text in ("", "*"):
        return True
    vr = element.get("vr") or (dictionary_VR(int(tag, 16)) if keyword_for_tag(int(tag, 16)) else "UN")
    values = [str(v.get("Alphabetic", "")) if isinstance(v, dict) else str(v) for v in element.get("Value", [])]
    if vr in _RANGES:
        return any(_in_range(v, text) for v in values)
    choices = re.split(r"[\\,]", text) if vr in ("UI", "CS") else [text]
    for choice in choices:
        if vr == "PN":
            choice, values = choice.casefold(), [v.casefold() for v in values]
        if any(_like(v, choice) if vr in _WILDCARDS else v == choice for v in values):
            return True
    return False


def _like(value: str, pattern: str) -> bool:
    """Return whether a value matches a pattern with the wildcards * and ?."""
    return fnmatchcase(value, pattern.replace("[", "[[]"))


def _in_range(value: str, text: str) -> bool:
    """Return whether a date or time is the one in the text, or lies in a range like 20260101-20261231, whose ends may be missing."""
    if "-" not in text:
        return value == text
    low, _, high = text.partition("-")
    return (not low or value[: len(low)] >= low) and (not high or value[: len(high)] <= high)
