"""What the annotator tells its users. Every other error is a bug, and keeps its traceback."""


class AnnotatorError(ValueError):
    """A setting, a file or a document cannot be used. The message names it, its value and the way out."""


class MissingFileError(AnnotatorError, FileNotFoundError):
    """There is no such file."""
