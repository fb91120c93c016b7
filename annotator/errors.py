"""Errors for the users of the annotator. Every other error is a bug and keeps its traceback."""


class AnnotatorError(ValueError):
    """A setting, a file or a document cannot be used. The message names it, its value and the way out."""


class MissingFileError(AnnotatorError, FileNotFoundError):
    """A file that a setting names does not exist."""
