"""Results are kept within a limit."""

from lib.propagation.result_cache import ResultCache


def test_what_was_used_longest_ago_is_forgotten_first():
    cache = ResultCache(limit_bytes=100)
    cache.put("a", 1, 40)
    cache.put("b", 2, 40)
    assert cache.get("a") == 1  # Now b is the oldest.
    cache.put("c", 3, 40)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.bytes) == (1, None, 3, 80)
    cache.put("a", 4, 50)
    assert cache.get("a") == 4 and cache.bytes == 90
    cache.clear()
    assert cache.get("a") is None and cache.bytes == 0
