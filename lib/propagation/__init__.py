"""From the prompts of a few slices to masks of all slices: gaps and passes, memory propagation both ways, blending, object end, zoom.

Estimates of quality and the choice of slices do not belong here (`lib.quality`). It may import `lib.model` and what lies below.
"""
