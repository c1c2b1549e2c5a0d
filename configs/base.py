"""The one config base: frozen, refuses unknown keys, read from YAML and ``key=value`` words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from configs.user_error import UserError


class ConfigError(UserError):
    """A config file is missing, is not YAML, or says something that cannot be."""


class Config(BaseModel):
    """Base of every config class.

    A choice between classes is a union discriminated on ``kind``; a check that concerns two
    fields is a validator on the class that owns them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] | None = None) -> Self:
        """Read a YAML file, apply ``key=value`` overrides and validate.

        Parameters
        ----------
        path
            The YAML file.
        overrides
            Dotted assignments such as ``"optim.lr=1e-4"``; values are read as YAML.

        Raises
        ------
        ConfigError
            Names the file and lists every error in it, one a line, with the path of the key.
        """
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such config file") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
        if not isinstance(values, dict):
            found = type(values).__name__
            raise ConfigError(f"{path}: expected 'key: value' lines, found {found}")
        for override in overrides or []:
            _assign(values, override)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_describe(e) for e in error.errors()]
            raise ConfigError(f"{path}:\n  " + "\n  ".join(lines)) from None

    def to_yaml(self) -> str:
        """Return every field, defaults included, as YAML text that ``load`` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=95)


def _assign(values: dict, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r}: expected key=value, such as optim.lr=1e-4")
    *parents, last = key.strip().split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
        values = child
    try:
        values[last] = _number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None


def _number(value: object) -> object:
    """Read ``1e-4`` as a number: YAML 1.1 wants ``1.0e-4`` and takes the former for a string."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _describe(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "(whole file)"
    found = "" if error["type"] == "missing" else f" (found {error['input']!r})"
    return f"{where}: {error['msg']}{found}"
