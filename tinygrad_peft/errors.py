"""Every exception that this package raises on purpose.

TinygradPeftError
├── ConfigError      a setting that cannot be used (also a ValueError)
├── DataError        a data file or an example that cannot be used (also a ValueError)
├── CheckpointError  a model or tokenizer file that cannot be read (also a ValueError)
├── FetchError       a download that failed or does not match its checksum
└── MissingExtraError  an optional dependency that is not installed (also an ImportError)
"""


class TinygradPeftError(Exception):
    """Base class of every error below."""


class ConfigError(TinygradPeftError, ValueError):
    """A setting that cannot be used."""


class DataError(TinygradPeftError, ValueError):
    """A data file or an example that cannot be used."""


class CheckpointError(TinygradPeftError, ValueError):
    """A model or tokenizer file that cannot be read."""


class FetchError(TinygradPeftError):
    """A download that failed or does not match its checksum."""


class MissingExtraError(TinygradPeftError, ImportError):
    """An optional dependency that is not installed; the message names the extra that has it."""
