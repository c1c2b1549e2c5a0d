"""The one config base: frozen, refuses unknown keys, read from YAML and ``key=value`` words."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from configs.user_error import UserError
from configs.yaml_text import YAMLTextError, parse_yaml, read_yaml

MOST_SHOWN = 80  # characters of a value in a sentence


class ConfigError(UserError):
    """A config file is missing, is not YAML, or says something that cannot be."""


class Config(BaseModel):
    """Base of every config class.

    A choice between classes is a union discriminated on ``kind``; a check that concerns two
    fields is a validator on the class that owns them.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

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
            values = read_yaml(path)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such config file") from None
        except YAMLTextError as error:
            raise ConfigError(f"{path}: {error}") from None
        if not isinstance(values, dict):
            found = type(values).__name__
            raise ConfigError(f"{path}: expected 'key: value' lines, found {found}")
        for override in overrides or []:
            section, dot, _ = override.partition("=")[0].strip().partition(".")
            if dot and values.get(section) is None and (items := _default_items(cls, section)):
                values[section] = items  # objectives.0.weight=2, of the default objectives
            _assign(values, override)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_describe(e, cls, values) for e in error.errors()]
            raise ConfigError(f"{path}:\n  " + "\n  ".join(lines)) from None

    def to_yaml(self) -> str:
        """Return every field, defaults included, as YAML text that ``load`` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=95)


def _assign(values: dict, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r}: expected key=value, such as optim.lr=1e-4")
    *parents, last = key.strip().split(".")
    for number, parent in enumerate(parents):
        if isinstance(found := values.get(parent), list):
            rest = ".".join([*parents[number + 1 :], last])
            _assign_item(found, rest, text, override)
            return
        if values.get(parent) is None:  # absent, or a heading with nothing below it
            values[parent] = {}
        child = values[parent]
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
        values = child
    try:
        values[last] = _number(parse_yaml(text))
    except YAMLTextError as error:
        raise ConfigError(f"override {override!r}: the value {error}") from None


def _assign_item(items: list, key: str, text: str, override: str) -> None:
    """Assign to an item of a list, ``objectives.0.weight=2``."""
    number, _, rest = key.partition(".")
    inside = number.isdecimal() and int(number) < len(items)
    if not (inside and rest and isinstance(items[int(number)], dict)):
        raise ConfigError(
            f"override {override!r}: expected the number of an item, 0 to {len(items) - 1}, and "
            "a key of it, such as objectives.0.weight=2"
        )
    _assign(items[int(number)], f"{rest}={text}")


def _number(value: object) -> object:
    """Read ``1e-4`` as a number: YAML 1.1 wants ``1.0e-4`` and takes the former for a string."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _default_items(config: type[BaseModel], name: str) -> list[dict]:
    """Return the default of a field that is a list of sections; empty for other fields."""
    field = config.model_fields.get(name)
    default = None if field is None else field.get_default(call_default_factory=True)
    items = default if isinstance(default, list) else []
    return [item.model_dump() for item in items if isinstance(item, BaseModel)]


def _describe(error: Mapping[str, Any], config: type[BaseModel], values: dict) -> str:
    keys, section = _resolve(error["loc"], config)
    where = ".".join(keys) or "(whole file)"
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no such key{_did_you_mean(keys, section, config, values)}"
    shown = repr(error["input"])
    if len(shown) > MOST_SHOWN:
        shown = shown[:MOST_SHOWN] + "..."
    found = "" if error["type"] == "missing" else f" (found {shown})"
    return f"{where}: {error['msg']}{found}"


def _resolve(
    location: tuple[int | str, ...], config: type[BaseModel]
) -> tuple[list[str], type[BaseModel] | None]:
    """Follow an error's location; return the keys as the user wrote them, and the last's section.

    Where a section is one of several classes, pydantic puts its ``kind`` between the keys.
    """
    keys: list[str] = []
    section: type[BaseModel] | None = config
    choices: list[type[BaseModel]] = []
    for depth, part in enumerate(location):
        chosen = [c for c in choices if c.model_fields["kind"].default == part]
        if chosen:
            section, choices = chosen[0], []
            continue
        keys.append(str(part))
        if depth == len(location) - 1:
            break
        if isinstance(part, int):  # in a list: the section is that of its items
            continue
        field = section.model_fields.get(str(part)) if section is not None else None
        sections = [] if field is None else _sections(field.annotation)
        section, choices = (sections[0], []) if len(sections) == 1 else (None, sections)
    return keys, section


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the config classes that a field's type allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]


def _did_you_mean(
    keys: list[str], section: type[BaseModel] | None, config: type[BaseModel], values: dict
) -> str:
    """Name the nearest key of the same section, or the same key of another one.

    In a list of sections it is the first item that has the key, such as ``objectives.0.d_hidden``.
    """
    *parents, key = keys
    own = [] if section is None else list(section.model_fields)
    near = [".".join([*parents, name]) for name in get_close_matches(key, own, n=1)]
    if not near:
        near = [
            f"{path}.{key}"
            for name, field in config.model_fields.items()
            for path, inner in _paths(name, field.annotation, config, values)
            if key in inner.model_fields
        ]
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(own)}" if own else ""


def _paths(
    name: str, annotation: Any, config: type[BaseModel], values: dict
) -> list[tuple[str, type[BaseModel]]]:
    """Return the keys that lead to a field's sections, with the class of each."""
    sections = _sections(annotation)
    if get_origin(annotation) is not list:
        return [(name, section) for section in sections]
    of_kind = {section.model_fields["kind"].default: section for section in sections}
    items = values[name] if isinstance(values.get(name), list) else _default_items(config, name)
    kinds = [item.get("kind") for item in items if isinstance(item, dict)]
    return [(f"{name}.{i}", of_kind[kind]) for i, kind in enumerate(kinds) if kind in of_kind]
