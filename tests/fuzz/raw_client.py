"""A client for hostile requests, which checks what holds for every answer of the server."""

import http.client
import json
from urllib.parse import quote, urlencode, urlsplit

import requests

TIMEOUT_S = 60  # A request that takes longer counts as hanging.


class RawClient:
    """A client that sends addresses unchanged, while client libraries would correct their paths.

    Args:
        address: URL of the server.
        secret: Content of a file that no answer may hold.
    """

    def __init__(self, address: str, secret: bytes):
        self.address, self.secret, self._host = address, secret, urlsplit(address).netloc

    def __call__(self, method: str, path: str, query=(), **body) -> tuple[int, bytes]:
        """Send a request, check what holds for every answer, and return its status and body."""
        query = [(k, v.encode(errors="surrogatepass") if isinstance(v, str) else v) for k, v in dict(query).items()]
        target = quote(path.encode(errors="surrogatepass"), safe="/%~") + ("?" + urlencode(query) if query else "")
        prepared = requests.Request(method, self.address, **body).prepare()
        connection = http.client.HTTPConnection(self._host, timeout=TIMEOUT_S)
        try:
            connection.request(method, target, prepared.body, dict(prepared.headers))
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
        finally:
            connection.close()
        what = f"{method} {target[:200]} -> {status}: {content[:400]!r}"
        assert status < 500 or (status == 502 and path.startswith("/proxy")), what
        assert self.secret not in content, what
        if not path.startswith("/logs"):
            assert b"Traceback" not in content and b'File "' not in content, what
        if status >= 400 and method != "HEAD":
            detail = json.loads(content)["detail"]
            assert detail and (isinstance(detail, str) or all(d["msg"] for d in detail)), what
        return status, content
