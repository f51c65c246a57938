"""The error of everything that is asked for and cannot be done."""


class ConfigError(ValueError):
    """A value that is refused; the message is one line that names it and what is allowed."""
