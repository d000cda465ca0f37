"""What a stage of an experiment file says besides its texts: images, tools, schemas, and how often it is asked."""

from __future__ import annotations

import base64
import re
from pathlib import PurePosixPath
from typing import Any

from promptlooper.completion import Tool
from promptlooper.document import Path
from promptlooper.jsonvalue import Json
from promptlooper.runner.spec.files import FileRefused
from promptlooper.runner.spec.forms import Form
from promptlooper.runner.spec.values import is_integer, noun

CALL_KEYS = (
    *("response_schema", "retries_on_invalid", "tools", "tool_choice", "tool_results", "images", "continue"),
    "for_each",
)
MAX_IMAGE_BYTES = 1 << 20  # it stands in the experiment, and in each question that shows it
_IMAGE_FILES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
_IMAGE_TYPES = {  # by how the content begins, as a name may say another one and providers compare
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "gif": re.compile(rb"GIF8[79]a"),
    "webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}


class StageKeys:
    """Reads them; `field` is the stage in the normal form, to which problems and origins belong."""

    def __init__(self, form: Form, field: str, path: Path, stage: dict[str, Json]) -> None:
        self._form, self._field, self._path, self._stage = form, field, path, stage

    def read(self) -> dict[str, Any]:
        """The fields of `Stage` that are set; what is wrong goes to the notes."""
        readers = {
            "images": self._images,
            "tools": self._tools,
            "tool_choice": self._text,
            "tool_results": self._tool_results,
            "response_schema": self._schema,
            "retries_on_invalid": self._count,
            "for_each": self._text,
        }
        found: dict[str, Any] = {}
        for key, reader in readers.items():
            if self._stage.get(key) is not None:
                self._form.notes.came_from(f"{self._field}.{key}", (*self._path, key))
                if (value := reader(key, self._stage[key])) is not None:
                    found[key] = value
        if (value := self._stage.get("continue")) is not None:
            self._form.notes.came_from(f"{self._field}.continue_conversation", (*self._path, "continue"))
            if not isinstance(value, bool):
                self._wrong("continue", f"'continue' must be true or false, not {noun(value)}")
            else:
                found["continue_conversation"] = value
        return found

    def _wrong(self, key: str, message: str) -> None:
        self._form.notes.add((*self._path, key), message)

    def _text(self, key: str, value: Json) -> str | None:
        return self._form.text((*self._path, key), value, key)

    def _count(self, key: str, value: Json) -> int | None:
        if is_integer(value):
            return value  # type: ignore[return-value]
        self._wrong(key, f"{key!r} must be an integer, not {noun(value)}")
        return None

    def _read_file(self, key: str, value: Json) -> Json:
        """The value, of a file where it is `{file: x}`."""
        name = self._form.file_name(value)
        return value if name is None else self._form.json_file((*self._path, key, "file"), name, key)

    def _schema(self, key: str, value: Json) -> Json:
        schema = self._read_file(key, value)
        return None if schema is None else self._form.mapping((*self._path, key), schema, key)

    def _tools(self, key: str, value: Json) -> tuple[Tool, ...]:
        tools: list[Tool] = []
        listed = self._read_file(key, value)
        items = None if listed is None else self._form.items((*self._path, key), listed, key)
        for index, item in enumerate(items or ()):
            at = (*self._path, key, index)
            tool = self._form.mapping(at, item, "a tool")
            if tool is not None and tool.get("type") == "function" and isinstance(tool.get("function"), dict):
                tool = tool["function"]  # type: ignore[assignment]  # as OpenAI writes them
            if tool is None:
                continue
            self._form.notes.check_keys(at, tool, ("name", "description", "parameters"), (), "a tool")
            if "name" not in tool:
                self._form.notes.add(at, "a tool needs 'name'")
                continue
            name = self._form.text((*at, "name"), tool["name"], "the name of a tool")
            description = self._form.text((*at, "description"), tool.get("description") or "", "description")
            parameters = self._form.mapping((*at, "parameters"), tool.get("parameters") or {}, "parameters")
            if name is not None and description is not None and parameters is not None:
                self._form.notes.came_from(f"{self._field}.tools[{len(tools)}]", at)
                tools.append(Tool(name, description, parameters))
        return tuple(tools)

    def _tool_results(self, key: str, value: Json) -> dict[str, str]:
        found = {}
        for name, result in (self._form.mapping((*self._path, key), value, key) or {}).items():
            at = (*self._path, key, name)
            self._form.notes.came_from(f"{self._field}.tool_results.{name}", at)
            text = self._form.text_or_file(at, result, "the result of a tool")
            if text is not None:
                found[name] = text.text
        return found

    def _images(self, key: str, value: Json) -> tuple[str, ...]:
        found: list[str] = []
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            at = (*self._path, key, index) if isinstance(value, list) else (*self._path, key)
            name = self._form.file_name(item)
            image = self._form.text(at, item, "an image") if name is None else self._image_file(at, name)
            if image is not None:
                self._form.notes.came_from(f"{self._field}.images[{len(found)}]", at)
                found.append(image)
        return tuple(found)

    def _image_file(self, at: Path, name: Json) -> str | None:
        """As a data URI."""
        if not isinstance(name, str) or PurePosixPath(name).suffix.lower() not in _IMAGE_FILES:
            self._form.notes.add(at, f"an image file must end in {', '.join(_IMAGE_FILES)}, not {noun(name)}")
            return None
        try:
            content = self._form.folder.read(name, MAX_IMAGE_BYTES)
        except FileRefused as error:
            self._form.notes.add(at, f"image: {error}")
            return None
        kind = next((kind for kind, begins in _IMAGE_TYPES.items() if begins.match(content)), None)
        if kind is None:
            self._form.notes.add(at, f"the file {name!r} is no image: its content is none of {', '.join(_IMAGE_TYPES)}")
            return None
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
