"""How good each slice's mask is, measured against a reference or estimated without one, and which slice to annotate next.

Strategies that choose among volumes do not belong here (`lib.serving.active_learning`). It may import `lib.propagation` and what lies below.
"""
