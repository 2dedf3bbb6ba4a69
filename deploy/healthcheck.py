"""Exit with status 0 if the server answers, else with 1. This script needs only Python's standard library.

examples:
  python healthcheck.py
  python healthcheck.py http://127.0.0.1:8001
"""

import sys
import urllib.error
import urllib.request


def is_healthy(address: str, timeout_s: float = 8) -> bool:
    """Return whether /info/ answers in time; the statuses 401 and 403 count as answers, because users may have to log in."""
    try:
        with urllib.request.urlopen(f"{address}/info/", timeout=timeout_s) as answer:
            return answer.status == 200
    except urllib.error.HTTPError as e:
        return e.code in (401, 403)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not is_healthy(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"))
