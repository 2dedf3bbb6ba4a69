"""SAM 2's network: building it, checkpoints and their versions, devices, worker threads, encoded slices and their caches, single steps.

This is the only package that imports `sam2`. How steps become a segmentation does not belong here (`lib.propagation`). It may import
`lib.common`, `lib.imaging` and `lib.prompts`.
"""
