"""The engine: one request from prompts to a mask (`Segmenter`), its options, its result, and requests as clients send them.

Nothing here knows HTTP, users or sessions (`lib.serving`). It may import `lib.quality` and what lies below.
"""
