"""Measure segmentation methods on labelled volumes, and pre-annotate folders of images.

The protocols of papers, of a challenge and our own, the methods that they compare, metrics, tables, plots, and the distribution of
cases over machines belong here; training and the web server do not. The package may import all packages from `lib.common` to `lib.engine`.
"""
