"""Errors that the user sees as one sentence instead of a traceback."""


class UserError(Exception):
    """A mistake or circumstance of the user's, such as a wrong option.

    The message is one sentence that says what is wrong and what to do about it.
    ``train.py`` prints it and exits with code 2. Every other exception is a bug and
    keeps its traceback.
    """


class ConfigError(UserError):
    """Flags, a preset or a configuration file that make no sense together."""


class DataError(UserError):
    """A data set is absent, damaged, or cannot be obtained or stored."""


class RunError(UserError):
    """A work directory that cannot be used, or a run that cannot continue."""


class DamagedError(RunError):
    """A file of a run is absent, or not what was written."""


class DivergedError(RunError):
    """The loss, a gradient or an update is no longer finite."""
