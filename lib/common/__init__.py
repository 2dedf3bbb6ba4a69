"""Helpers that every package may use: errors that users can correct, atomic writing of files, timing. This package imports no other
package of `lib`; code that knows images, prompts or models belongs in the packages above it."""
