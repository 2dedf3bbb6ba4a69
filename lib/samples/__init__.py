"""Sample data to try the app with: a generated CT phantom and a public MR template. No patient's images belong here. This package
may import `lib.common` and `lib.imaging`; the app itself does not need it."""
