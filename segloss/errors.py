"""The error class of segloss: a mistake of the user, explained in one line."""


class SeglossError(ValueError):
    """Input that segloss cannot use: a value, a file, a folder or a command.

    The message says what is wrong, where, the rule, the value, and what to do. Commands
    print it as one line. Any other exception is a bug, or comes from another package,
    and keeps its traceback.
    """


class MissingFileError(SeglossError, FileNotFoundError):
    """A file or folder that segloss needs does not exist."""


class ExistingFileError(SeglossError, FileExistsError):
    """A file exists that segloss would have to overwrite."""
