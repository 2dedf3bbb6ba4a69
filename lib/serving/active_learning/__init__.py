"""Active learning: records of the volumes being annotated, and MONAI Label's strategies and scoring methods based on them.

What a slice's quality is expected to be comes from `lib.quality`; HTTP and pages are in `lib.serving.web`. May import everything below
`lib.serving`, and `lib.serving.datastore` and `lib.serving.inference.checkpoint_catalog`.
"""
