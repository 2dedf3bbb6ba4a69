"""The HTTP side of the server: the app's own routes and pages, and the wrapping of MONAI Label's routes with checks and clear errors.

What the pages show is computed in `volume_page` and `viewers`, which know no HTTP. May import everything below `lib.serving`, and its
other packages except `lib.serving.training`.
"""
