"""Errors that users can cause and mend. Each message is one sentence or two that say what to do."""


class UserError(ValueError):
    """Wrong input; the server answers 400 with the message."""


class VolumeError(UserError):
    """The image cannot be read, or is not one 3D volume."""


class PromptError(UserError):
    """Clicks, boxes or masks that make no sense on this volume."""


class OptionError(UserError):
    """An option has an unknown or impossible value."""


class CheckpointError(UserError):
    """A checkpoint is unknown, missing, damaged, or of another architecture."""


class DownloadError(CheckpointError):
    """A checkpoint could not be fetched."""
