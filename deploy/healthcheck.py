"""Exit status 0 if the server answers: `python healthcheck.py [http://127.0.0.1:8000]`. Needs nothing but Python."""

import sys
import urllib.error
import urllib.request


def healthy(address: str, seconds: float = 8) -> bool:
    """Whether /info/ answers in time; 401 and 403 count, as users may have to log in."""
    try:
        with urllib.request.urlopen(f"{address}/info/", timeout=seconds) as answer:
            return answer.status == 200
    except urllib.error.HTTPError as e:
        return e.code in (401, 403)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not healthy(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"))
