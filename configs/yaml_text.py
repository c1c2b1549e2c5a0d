"""YAML as our configs write it: plain values, every key once, no larger than a person writes."""

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 2**20  # a list of ten thousand files is below that


class YAMLTextError(ValueError):
    """A file or text is not the YAML of a config; the message is one line."""


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, a nest of which grows a kilobyte to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise YAMLTextError(
                f"line {event.start_mark.line + 1}: *{event.anchor} repeats another part of the "
                "file, which a config cannot; write its values out"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if isinstance(key, str) and key in seen:
                raise YAMLTextError(
                    f"line {line}: {key!r} is set a second time (first in line {seen[key]}); "
                    "leave one of them"
                )
            if isinstance(key, str):
                seen[key] = line
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    YAMLTextError
        If it is no ordinary file, too large, or not the YAML of a config.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    if not path.is_file():  # to read a named pipe could wait for ever
        kind = "a folder" if path.is_dir() else "no ordinary file"
        raise YAMLTextError(f"is {kind}; give a YAML file")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise YAMLTextError(
                f"is larger than {MOST_BYTES:,} bytes, which no config is; give a YAML file"
            )
        return parse_yaml(content.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise YAMLTextError(f"cannot be read: {error}") from None


def parse_yaml(text: str) -> Any:
    """Read YAML text; errors as of ``read_yaml``."""
    try:
        return yaml.load(text, Loader=_Loader)
    except YAMLTextError:
        raise
    except RecursionError:
        raise YAMLTextError("is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # a date of month 13 is a ValueError
        raise YAMLTextError(f"cannot be read as YAML: {' '.join(str(error).split())}") from None
