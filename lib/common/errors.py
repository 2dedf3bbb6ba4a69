"""Errors that users can cause and correct. Each message consists of one or two sentences that say what to do."""


class UserError(ValueError):
    """The input or the configuration is wrong; the server answers with status 400 and the message."""


class VolumeError(UserError):
    """The image cannot be read or is not a single 3D volume."""


class ConflictError(UserError):
    """What is sent contradicts what is there already; the server answers with status 409."""


class PromptError(UserError):
    """The prompts (clicks, boxes, masks) contradict each other or do not fit the volume."""


class OptionError(UserError):
    """An option has an unknown or impossible value."""


class CheckpointError(UserError):
    """A checkpoint is unknown, missing or damaged, or it belongs to another architecture."""


class DownloadError(CheckpointError):
    """A checkpoint could not be downloaded."""
