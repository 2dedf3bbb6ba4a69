"""Prompts for one structure: clicks, boxes, painted slices and scribbles, checked and sorted by slice; and a simulated annotator.
Nothing here runs a model or knows the requests of a viewer. This package may import `lib.common` and `lib.imaging`."""
