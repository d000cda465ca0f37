"""YAML and JSON files as plain values: the core schema of YAML 1.2, nothing twice, nothing hidden.

Values are built straight from the C parser's events. Where something is wrong, the text is read a second time to learn
the line of every key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import yaml

from promptlooper.jsonvalue import Json
from promptlooper.strict_json import json_lines, json_parsed

Key = str | int
Path = tuple[Key, ...]

MAX_DEPTH = 64
MAX_ALIASED = 100_000  # values that aliases stand for, all in all

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {w: w.lower() == "true" for w in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Unreadable(Exception):
    """The text cannot be read on from here."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(slots=True)
class Document:
    """A file's value; `problems` are (line, sentence). `value` is None where nothing could be read."""

    value: Json
    problems: list[tuple[int, str]]
    text: str = field(repr=False, default="")
    json: bool = False
    unusable: list[tuple[int, str]] = field(default_factory=list)  # scalars that a problem names already
    _lines: dict[Path, int] | None = field(default=None, repr=False)

    def line(self, path: Path) -> int:
        """The line of a key or an item, or of the nearest thing around it that the file has."""
        if self._lines is None:
            self._lines = {(): 1}
            try:
                if self.json:
                    self._lines.update(json_lines(self.text))
                else:
                    _Builder(self._lines).build(self.text)
            except (_Unreadable, ValueError, IndexError, RecursionError):
                pass  # told when it was read first; what came before has its lines
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]


def scalar(text: str) -> Json:
    """A plain scalar of YAML's core schema. Raises ValueError for numbers that JSON does not have."""
    first = text[:1]
    if first.isdigit() or first in ("-", "+", "."):
        if _INT.fullmatch(text):
            if len(text) > 24:
                raise ValueError(f"{text[:12]}… is not an integer of at most 64 bits; put it in quotes")
            number = int(text, 8 if text[:2] == "0o" else 16 if text[:2] == "0x" else 10)
            if not -(2**63) <= number < 2**64:
                raise ValueError(f"{text} is not an integer of at most 64 bits; put it in quotes")
            return number
        if _FLOAT.fullmatch(text):
            value = float(text)
            if value in (float("inf"), float("-inf")):
                raise ValueError(f"{text} is too large for a number; put it in quotes")
            return value
        if _NOT_FINITE.fullmatch(text):
            raise ValueError(f"{text} is not a number that JSON has; put it in quotes")
        return text
    if text in _NULL:
        return None
    return _BOOL.get(text, text)


_NO_KEY = object()


class _Frame:
    __slots__ = ("anchor", "container", "key", "line", "nodes", "path")

    def __init__(self, container: Any, anchor: str | None, path: Path, line: int) -> None:
        self.container = container
        self.key: Any = _NO_KEY
        self.anchor = anchor
        self.nodes = 1
        self.path = path
        self.line = line


class _Builder:
    def __init__(self, lines: dict[Path, int] | None = None) -> None:
        self.problems: list[tuple[int, str]] = []
        self.unusable: list[tuple[int, str]] = []
        self.value: Any = None
        self._lines = lines
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._aliased = 0
        self._documents = 0

    def build(self, text: str) -> None:
        try:
            for event in yaml.parse(text, Loader=_LOADER):
                self._take(event)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise _Unreadable(mark.line + 1 if mark else 1, self._sentence(error, text)) from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, max(0, int(error.position))) + 1
            raise _Unreadable(line, f"character {_shown(error.character)} is not allowed in YAML") from error

    @staticmethod
    def _sentence(error: yaml.MarkedYAMLError, text: str) -> str:
        if "cannot start any token" in str(error.problem) and error.problem_mark is not None:
            sign = text[error.problem_mark.index : error.problem_mark.index + 1]
            if sign == "\t":
                return "a tab stands where YAML wants spaces; indent with spaces"
            return f"this is not YAML: a text cannot begin with {sign!r}; put it in quotes"
        return f"this is not YAML: {', '.join(part for part in (error.context, error.problem) if part)}"

    def _take(self, event: Any) -> None:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._scalar(event)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            self._check_tag(event)
            line = event.start_mark.line + 1
            if len(self._stack) >= MAX_DEPTH:
                raise _Unreadable(line, f"values are nested deeper than {MAX_DEPTH} levels")
            if self._expects_key():
                raise _Unreadable(line, 'a key must be text; put a template in quotes: "{{ … }}"')
            container: Any = {} if kind is yaml.MappingStartEvent else []
            self._stack.append(_Frame(container, event.anchor, self._next_path(line), line))
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            frame = self._stack.pop()
            self._put(frame.container, frame.anchor, frame.nodes)
        elif kind is yaml.AliasEvent:
            self._alias(event)
        elif kind is yaml.DocumentStartEvent:
            self._documents += 1
            if self._documents > 1:
                raise _Unreadable(event.start_mark.line + 1, "there is a second YAML document; a file has one")

    def _check_tag(self, event: Any) -> None:
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.problems.append((event.start_mark.line + 1, f"the tag {tag!r} is not allowed; remove it"))

    def _expects_key(self) -> bool:
        return bool(self._stack) and type(self._stack[-1].container) is dict and self._stack[-1].key is _NO_KEY

    def _next_path(self, line: int) -> Path:
        if self._lines is None or not self._stack:
            return ()
        frame = self._stack[-1]
        if type(frame.container) is dict:
            return (*frame.path, frame.key)
        path = (*frame.path, len(frame.container))
        self._lines.setdefault(path, line)
        return path

    def _scalar(self, event: Any) -> None:
        self._check_tag(event)
        line = event.start_mark.line + 1
        if self._expects_key():
            frame = self._stack[-1]
            frame.key = event.value
            if frame.key in frame.container:
                self.problems.append((line, f"the key {frame.key!r} is there twice; remove one"))
            elif self._lines is not None:
                self._lines.setdefault((*frame.path, frame.key), line)
            return
        value: Any = event.value
        if event.implicit[0] and event.style in (None, ""):
            try:
                value = scalar(value)
            except ValueError as error:
                self.problems.append((line, str(error)))
                self.unusable.append((line, value))
        self._next_path(line)
        self._put(value, event.anchor, 1)

    def _alias(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if self._expects_key():
            raise _Unreadable(line, f"the alias *{event.anchor} cannot be a key")
        if event.anchor not in self._anchors:
            raise _Unreadable(line, f"the alias *{event.anchor} has no anchor &{event.anchor} before it")
        value, nodes = self._anchors[event.anchor]
        self._aliased += nodes
        if self._aliased > MAX_ALIASED:
            raise _Unreadable(
                line, f"aliases stand for more than {MAX_ALIASED:,} values; write them out in a data file"
            )
        self._next_path(line)
        self._put(value, None, nodes)

    def _put(self, value: Any, anchor: str | None, nodes: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = (value, nodes)
        if not self._stack:
            self.value = value
            return
        frame = self._stack[-1]
        frame.nodes += nodes
        if type(frame.container) is dict:
            frame.container.setdefault(frame.key, value)  # of two equal keys the first stays
            frame.key = _NO_KEY
        else:
            frame.container.append(value)


def _shown(character: object) -> str:
    return f"U+{character:04X}" if isinstance(character, int) else repr(character)


class NotUtf8(ValueError):
    """Bytes that are no text; the message is a sentence."""

    def __init__(self, line: int, byte: int) -> None:
        super().__init__(f"this is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8")
        self.line = line


def decoded(data: bytes) -> str:
    """The text of a UTF-8 file. Raises NotUtf8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotUtf8(data.count(b"\n", 0, error.start) + 1, data[error.start]) from error


def read_document(text: str, *, json: bool = False) -> Document:
    """The value of a YAML or JSON text. Never raises: what is wrong is in `problems`."""
    document = Document(None, [], text, json)
    if json:
        document.value, document.problems = json_parsed(text)
    else:
        builder = _Builder()
        try:
            builder.build(text)
            document.value = builder.value
        except _Unreadable as error:
            builder.problems.append((error.line, error.message))
        document.problems, document.unusable = builder.problems, builder.unusable
    if document.value is not None:
        try:
            orjson.dumps(document.value)
        except TypeError as error:  # surrogates, numbers beyond 64 bits, nesting beyond 254
            document.problems.append((1, f"the file holds a value that cannot be kept: {error}"))
            document.value = None
    return document


def documents_of_lines(text: str) -> Iterator[tuple[int, Json, str | None]]:
    """(line, value, what is wrong) of each line of a JSONL text that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            value, problems = json_parsed(line)
            yield number, value, problems[0][1] if problems else None
