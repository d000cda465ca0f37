"""What is wrong with the images, tools, schemas and repetitions of a stage."""

from __future__ import annotations

import re
from collections.abc import Iterator

from promptlooper.completion import TOOL_CHOICES
from promptlooper.errors import Problem
from promptlooper.experiment import Stage
from promptlooper.json_schema import SchemaRefused, validator_of
from promptlooper.runner.render import IMAGE, Renderer
from promptlooper.runner.spec.problems import nearest

MOST_RETRIES = 10
MOST_TOOLS = 128
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def problems_of_calls(at: str, stage: Stage, *, first: bool) -> Iterator[Problem]:
    """Of the stage at the field `at`, which is the `first` of its pipeline or not."""
    yield from _images(at, stage)
    yield from _tools(at, stage)
    if stage.response_schema is not None:
        yield from _schema(f"{at}.response_schema", stage.response_schema)
    if not 0 <= stage.retries_on_invalid <= MOST_RETRIES:
        message = f"'retries_on_invalid' must be from 0 to {MOST_RETRIES}, not {stage.retries_on_invalid}"
        yield Problem(f"{at}.retries_on_invalid", message)
    elif stage.retries_on_invalid and stage.response_schema is None and not stage.tools:
        message = "'retries_on_invalid' needs a 'response_schema' or 'tools': without them no answer is invalid"
        yield Problem(f"{at}.retries_on_invalid", message)
    if stage.continue_conversation:
        if first and not stage.for_each:
            message = "there is no conversation to continue before the first stage; remove 'continue'"
            yield Problem(f"{at}.continue_conversation", message)
        elif not first and any(message.role == "system" for message in stage.messages):
            message = "a stage that continues a conversation has its system prompt already; remove this one"
            yield Problem(f"{at}.continue_conversation", message)
    if stage.for_each and not Renderer.is_template(stage.for_each):
        message = "'for_each' must be a template that gives a list, such as '{{ input.turns }}'"
        yield Problem(f"{at}.for_each", message)


def _images(at: str, stage: Stage) -> Iterator[Problem]:
    if stage.images and not any(message.role == "user" for message in stage.messages):
        yield Problem(f"{at}.images", "images go with the last user message, and there is none")
    for index, image in enumerate(stage.images):
        if not Renderer.is_template(image) and not IMAGE.match(image):
            message = (
                "an image must be an https:// address, data:image/…;base64,…, {file: x.png} or a template of these"
            )
            yield Problem(f"{at}.images[{index}]", message)


def _tools(at: str, stage: Stage) -> Iterator[Problem]:
    names = [tool.name for tool in stage.tools]
    if len(names) > MOST_TOOLS:
        yield Problem(f"{at}.tools", f"there are {len(names)} tools, at most {MOST_TOOLS} are allowed")
    for index, tool in enumerate(stage.tools):
        field = f"{at}.tools[{index}]"
        if not _TOOL_NAME.fullmatch(tool.name):
            yield Problem(field, f"the tool name {tool.name!r} must be 1 to 64 of letters, digits, _ and -")
        if tool.name in names[:index]:
            yield Problem(field, f"two tools are named {tool.name!r}")
        if tool.parameters:
            yield from _schema(field, tool.parameters)
    if stage.tool_choice and not stage.tools:
        yield Problem(f"{at}.tool_choice", "'tool_choice' needs 'tools'")
    elif stage.tool_choice and stage.tool_choice not in (*TOOL_CHOICES, *names):
        known = [*TOOL_CHOICES, *names]
        message = f"{stage.tool_choice!r} is not one of {', '.join(known)}{nearest(stage.tool_choice, known)}"
        yield Problem(f"{at}.tool_choice", message)
    for name in stage.tool_results:
        if name not in names:
            yield Problem(f"{at}.tool_results.{name}", f"no tool is named {name!r}{nearest(name, names)}")


def _schema(field: str, schema: object) -> Iterator[Problem]:
    try:
        validator_of(schema)  # type: ignore[arg-type]
    except SchemaRefused as refused:
        yield Problem(field, str(refused))
