"""Errors that tell what happened, why, and how to mend it.

The tree::

    AnomalyAEError                  every error that is the input's fault, not the program's
    ├── UsageError                  two options that contradict each other, an unknown name        (exit code 2)
    ├── ConfigError                 a configuration with an unknown key or a value out of range    (exit code 2)
    ├── UnreadableImageError        one file that holds no usable image: the run goes on without it
    ├── DataError                   a data set from which no true result can be computed
    ├── CalibrationError            a false-alarm rate that the number of normal images cannot support
    ├── ModelFileError              a model file that is damaged, foreign or of another format
    ├── IncompatibleImageError      a readable image that does not fit the model (channels, dimensions)
    └── OutputError                 a result that cannot be written (exists already, disk full, no permission)

A bug is none of these and shows its traceback.
"""

from __future__ import annotations

from anomaly_ae.words import text_of


class AnomalyAEError(Exception):
    """Base of all expected errors.

    Parameters
    ----------
    what : str
        What happened, with the file's name and the numbers.
    why : str
        The cause, as far as it is known.
    fix : str
        What the user can do.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what, why, fix)

    def __str__(self) -> str:
        """Return the three parts on one line.

        >>> str(DataError("no normal images in part/", "every folder is called 'defect'", "name one 'good'"))
        "no normal images in part/: every folder is called 'defect' (name one 'good')"
        """
        text = f"{self.what}: {self.why}" if self.why else self.what
        text = f"{text} ({self.fix})" if self.fix else text
        return text_of(" ".join(text.split()))


class UsageError(AnomalyAEError):
    """The command or call itself is wrong."""

    exit_code = 2


class ConfigError(AnomalyAEError):
    """A configuration value or key is not acceptable."""

    exit_code = 2


class UnreadableImageError(AnomalyAEError):
    """One file holds no image that can be used."""


class DataError(AnomalyAEError):
    """The data set as a whole cannot give a true result."""


class CalibrationError(AnomalyAEError):
    """The asked-for false-alarm rate cannot be promised with these normal images."""


class ModelFileError(AnomalyAEError):
    """The model file is damaged, foreign, or of an unknown format."""


class IncompatibleImageError(AnomalyAEError):
    """The image is readable but does not fit the model."""


class OutputError(AnomalyAEError):
    """A result cannot be written."""
