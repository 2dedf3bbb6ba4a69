"""The features of volumes are kept within a limit."""

from lib.model.feature_cache import FeatureCache


class Entry:
    bytes = 60

    def put_all_aside(self):
        pass


def test_the_volume_that_was_used_longest_ago_is_forgotten_first():
    cache = FeatureCache(limit_bytes=100)
    first = cache.get(("a",), Entry)
    cache.get(("b",), Entry)
    assert cache.get(("a",), Entry) is first  # It was used again: now "b" is the oldest.
    cache.trim()
    assert cache.bytes == 60 and cache.get(("a",), Entry) is first
