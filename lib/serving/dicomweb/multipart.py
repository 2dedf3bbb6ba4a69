"""Bodies of the type multipart/related, and which of the media types on offer a client accepts."""

import re
import secrets
from collections.abc import Iterable, Iterator

from fastapi import HTTPException

_DEFAULT_ANY = "*/*"


def accepted(header: str | None, offered: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return the first media type in an Accept header that is on offer, with its parameters; the first offer if the client takes any.

    Args:
        offered: Media types, the preferred one first; "multipart/related; type=application/dicom" for a body of several parts.

    Raises:
        HTTPException: 406 if the client accepts none of them.
    """
    offered = list(offered)
    ranges = [_parse(r) for r in _split(header or _DEFAULT_ANY)]
    for media_type, parameters in sorted(ranges, key=lambda r: -_quality(r[1])):
        if _quality(parameters) == 0:
            continue
        inner = parameters.get("type", "").lower()
        for offer in offered:
            offered_type, offered_parameters = _parse(offer)
            offered_inner = offered_parameters.get("type", "")
            if media_type in (_DEFAULT_ANY, offered_type, f"{offered_type.split('/')[0]}/*") and inner in ("", offered_inner, _DEFAULT_ANY):
                return offer, parameters
    raise HTTPException(406, f"Only {' and '.join(offered)} can be sent.")


def body(parts: Iterable[tuple[bytes, str]], boundary: str) -> Iterator[bytes]:
    """Yield a multipart body piece by piece; each part is its content and the text of its header lines."""
    for content, headers in parts:
        yield f"--{boundary}\r\n{headers}\r\n\r\n".encode()
        yield content
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def new_boundary() -> str:
    """Return a text that occurs in no content."""
    return secrets.token_hex(24)


def split_body(content: bytes, content_type: str) -> list[tuple[bytes, str]]:
    """Return the parts of a multipart body that a client sent, each with its media type in small letters.

    Raises:
        HTTPException: 415 if the body is not multipart/related, 400 if it is incomplete.
    """
    media_type, parameters = _parse(content_type)
    if media_type != "multipart/related" or not parameters.get("boundary"):
        raise HTTPException(415, "Send the objects as multipart/related; type=\"application/dicom\"; boundary=...")
    delimiter = b"--" + parameters["boundary"].encode()
    sections = (b"\r\n" + content).split(b"\r\n" + delimiter)
    if len(sections) < 3 or not sections[-1].startswith(b"--"):
        raise HTTPException(400, "The body is incomplete: its last boundary is missing.")
    parts = []
    for section in sections[1:-1]:
        headers, separator, part = section.partition(b"\r\n\r\n")
        if not separator:
            raise HTTPException(400, "A part of the body has no header lines.")
        found = re.search(rb"(?im)^content-type:[ \t]*([^\r\n]*)", headers)
        declared = found[1].decode(errors="replace") if found else parameters.get("type", "")
        parts.append((part, _parse(declared)[0]))
    return parts


def _split(header: str) -> list[str]:
    """Return the elements of a header, separated by commas outside of quotation marks."""
    return [m.strip() for m in re.findall(r'(?:"[^"]*"|[^,"])+', header) if m.strip()]


def _parse(text: str) -> tuple[str, dict[str, str]]:
    """Return a media type in small letters and its parameters."""
    first, *others = [p.strip() for p in re.findall(r'(?:"[^"]*"|[^;"])+', text)] or [""]
    pairs = (p.partition("=") for p in others)
    return first.lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def _quality(parameters: dict[str, str]) -> float:
    try:
        return float(parameters.get("q", 1))
    except ValueError:
        return 1.0
