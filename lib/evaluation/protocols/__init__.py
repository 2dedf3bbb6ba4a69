"""Evaluation protocols: each module simulates the annotator of one paper or challenge and yields a `Step` after each propagation.

A protocol knows the reference but gives a method nothing but prompts. Metrics are computed in `lib.evaluation.metrics`.
"""
