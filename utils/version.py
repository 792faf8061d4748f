"""The version of all this, as pyproject.toml has it."""

VERSION = "0.1.0"
