"""Typed reading of a document's values: each getter returns the value, or notes what is wrong and returns None."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from promptlooper.document import NotUtf8, Path, decoded, read_document
from promptlooper.jsonvalue import Json
from promptlooper.runner.spec.files import FileRefused, Folder
from promptlooper.runner.spec.notes import Notes
from promptlooper.runner.spec.problems import FilePosition
from promptlooper.runner.spec.values import is_integer, is_number, noun, seconds


@dataclass(frozen=True, slots=True)
class Text:
    """A text with where it stands."""

    text: str
    origin: Path | FilePosition


class Form:
    def __init__(self, notes: Notes, folder: Folder) -> None:
        self.notes = notes
        self.folder = folder

    def text(self, path: Path, value: Json, what: str) -> str | None:
        if isinstance(value, str):
            return value
        hint = "; put it in quotes" if isinstance(value, bool | int | float) else ""
        self.notes.add(path, f"{what} must be text, not {noun(value)}{hint}")
        return None

    def mapping(self, path: Path, value: Json, what: str) -> dict[str, Json] | None:
        if isinstance(value, dict):
            return value
        self.notes.add(path, f"{what} must be a mapping, not {noun(value)}")
        return None

    def items(self, path: Path, value: Json, what: str) -> list[Json] | None:
        if isinstance(value, list):
            return value
        self.notes.add(path, f"{what} must be a list, not {noun(value)}")
        return None

    def number(self, path: Path, value: Json, what: str) -> float | None:
        if is_number(value):
            return value  # type: ignore[return-value]
        self.notes.add(path, f"{what} must be a number, not {noun(value)}")
        return None

    def integer(self, path: Path, value: Json, what: str) -> int | None:
        if is_integer(value):
            return value  # type: ignore[return-value]
        self.notes.add(path, f"{what} must be an integer, not {noun(value)}")
        return None

    def seconds(self, path: Path, value: Json, what: str) -> float | None:
        return self._converted(path, value, what, seconds)

    def _converted(self, path: Path, value: Json, what: str, convert: Callable[[Json], float]) -> float | None:
        try:
            return convert(value)
        except ValueError as error:
            self.notes.add(path, f"{what}: {error}")
            return None

    def file_name(self, value: Json) -> Json:
        """The x of `{file: x}`, else None."""
        return value["file"] if isinstance(value, dict) and list(value) == ["file"] else None

    def text_or_file(self, path: Path, value: Json, what: str, *, prompt: bool = True) -> Text | None:
        """A text, or `{file: x}`. The newline that editors put at the end of a file is no part of a prompt."""
        if isinstance(value, dict):
            if list(value) != ["file"]:
                self.notes.add(path, f"{what} must be text or {{file: path}}, not {noun(value)}")
                return None
            return self.file(path, value["file"], what, prompt=prompt)
        text = self.text(path, value, what)
        return None if text is None else Text(text, path)

    def file(self, path: Path, name: Json, what: str, *, prompt: bool = False) -> Text | None:
        if not isinstance(name, str):
            self.notes.add(path, f"{what}: the name of a file must be text, not {noun(name)}")
            return None
        try:
            text = decoded(self.folder.read(name))
        except FileRefused as error:
            self.notes.add(path, f"{what}: {error}")
            return None
        except NotUtf8 as error:
            self.notes.add_at(FilePosition(self.folder.shown(name), error.line), str(error))
            return None
        if prompt:
            text = text.replace("\r\n", "\n").removesuffix("\n")
        return Text(text, FilePosition(self.folder.shown(name), 1))

    def json_file(self, path: Path, name: Json, what: str) -> Json:
        """The value of a JSON or YAML file."""
        found = self.file(path, name, what)
        if found is None:
            return None
        document = read_document(found.text, json=str(name).endswith(".json"))
        for line, message in document.problems:
            self.notes.add_at(FilePosition(self.folder.shown(str(name)), line), message)
        return document.value

    def params(self, path: Path, value: Json, what: str = "params") -> dict[str, Json]:
        """Parameters of calls; one stop text becomes a list of one. Their types are checked in the normal form."""
        if value is None:
            return {}
        found = self.mapping(path, value, what) or {}
        return {name: param(name, setting) for name, setting in found.items()}


def param(name: str, value: Json) -> Json:
    return [value] if name == "stop" and isinstance(value, str) else value
