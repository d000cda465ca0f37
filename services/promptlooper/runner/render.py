"""Rendering: templates and a run's values become messages, scorer values and texts."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import Template, TemplateSyntaxError, nodes

from promptlooper.completion import Message, arguments_of
from promptlooper.errors import TemplateError
from promptlooper.experiment import ExperimentSpec, InputRow, Stage
from promptlooper.jsonvalue import Json, parsed_output
from promptlooper.run import StageResult
from promptlooper.runner.budget import LimitExceeded, StageData, plain_json, refill
from promptlooper.runner.references import Reference, References, chains_of, first_missing, references_in
from promptlooper.runner.sandbox import MissingVariable, SandboxEnvironment

MAX_SOURCE = 256 * 1024  # characters

STAGE_ROOTS = ("input", "expected", "config", "files", "stages", "prev_output", "stage_index", "tags")
SCORER_ROOTS = (*STAGE_ROOTS, "output")


IMAGE = re.compile(r"https://[^\s/]+\S*\Z|data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}\Z")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


class StageView(StageData, Mapping[str, object]):
    """A stage's result as templates see it."""

    __slots__ = ("_result",)
    NAMES = ("output", "parsed", "tool_calls", "messages", "model", "tokens_in", "tokens_out", "latency_ms")

    def __init__(self, result: StageResult) -> None:
        self._result = result

    def __getitem__(self, name: str) -> object:
        if name == "parsed":
            return parsed_output(self._result.output)
        if name == "messages":
            return [{"role": message.role, "content": message.content} for message in self._result.messages]
        if name == "tool_calls":
            calls = self._result.tool_calls
            return [{"id": call.id, "name": call.name, "arguments": arguments_of(call)} for call in calls]
        if name in StageView.NAMES:
            return getattr(self._result, name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(StageView.NAMES)

    def __len__(self) -> int:
        return len(StageView.NAMES)


class StagesView(StageData, Sequence[StageView]):
    """Earlier stages by index, and by name where they have one: `stages[0].output`, `stages.think.output`. Of a stage
    that took several calls, the last one."""

    __slots__ = ("_by_name", "_views")

    def __init__(self, results: Sequence[StageResult]) -> None:
        last = list({result.stage_index: result for result in results}.values())
        self._views = [StageView(result) for result in last]
        self._by_name = {result.name: view for result, view in zip(last, self._views, strict=True) if result.name}

    def __getitem__(self, key: Any) -> Any:
        return self._by_name[key] if isinstance(key, str) else self._views[key]

    def __len__(self) -> int:
        return len(self._views)


def variables(
    spec: ExperimentSpec, row: InputRow, results: Sequence[StageResult], stage_index: int
) -> dict[str, object]:
    """What the templates of a stage may use, of the results of stages before it."""
    if results and results[-1].stage_index >= stage_index:
        results = [result for result in results if result.stage_index < stage_index]
    return {
        "input": row.value,
        "expected": row.expected,
        "config": spec.config,
        "files": spec.files,
        "stages": StagesView(results),
        "prev_output": results[-1].output if results else "",
        "stage_index": stage_index,
        "tags": list(row.tags),
    }


def scorer_variables(spec: ExperimentSpec, row: InputRow, results: Sequence[StageResult]) -> dict[str, object]:
    """What the templates of scorers may use, after the last stage."""
    output = results[-1].output if results else ""
    return {
        **variables(spec, row, results, results[-1].stage_index if results else 0),
        "stages": StagesView(results),
        "output": output,
    }


class Renderer:
    """Compiles each template once and keeps the last `capacity`; safe to share between threads."""

    def __init__(self, capacity: int = 512) -> None:
        self._environment = SandboxEnvironment()
        self._template = functools.lru_cache(maxsize=capacity)(self._compiled)
        self._expression = functools.lru_cache(maxsize=capacity)(self._compiled_expression)

    @staticmethod
    def is_template(text: str) -> bool:
        return "{{" in text or "{%" in text or "{#" in text

    def text(self, source: str, variables: Mapping[str, object]) -> str:
        """The rendered template. Raises TemplateError, whose metadata `variable` names what was missing."""
        if not self.is_template(source):
            return source
        try:
            template = self._template(source)
            refill()
            return self._environment.concat(template.root_render_func(template.new_context(variables)))  # type: ignore
        except Exception as error:
            raise self._error(error, source, variables) from error

    def value(self, value: Json, variables: Mapping[str, object]) -> Json:
        """The value with every text in it rendered; a text that is one `{{ expr }}` keeps its type."""
        if isinstance(value, str):
            if not self.is_template(value):
                return value
            try:
                template = self._expression(value)
                if template is None:
                    return self.text(value, variables)
                refill()
                context = template.new_context(variables)  # type: ignore[arg-type]
                for _ in template.root_render_func(context):
                    pass
                result: Json = plain_json(context.vars["result"])
            except TemplateError:
                raise
            except Exception as error:
                raise self._error(error, value, variables) from error
            return result
        if isinstance(value, Mapping):
            return {key: self.value(item, variables) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.value(item, variables) for item in value]
        return value

    def messages(self, stage: Stage, variables: Mapping[str, object]) -> tuple[Message, ...]:
        """The stage's own. Raises TemplateError."""
        said = [Message(template.role, self.text(template.content, variables)) for template in stage.messages]
        if stage.images:
            images = tuple(image for source in stage.images for image in self._images(source, variables))
            at = max(index for index, message in enumerate(said) if message.role == "user")
            said[at] = replace(said[at], images=images)
        return tuple(said)

    def _images(self, source: str, variables: Mapping[str, object]) -> Iterator[str]:
        value = self.value(source, variables)
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        for image in value if listed else [value]:  # type: ignore[union-attr]
            if not isinstance(image, str) or not IMAGE.match(image):
                raise TemplateError(
                    f"an image must be an https:// address or data:image/…;base64,…, not {_shown(image)}"
                )
            yield image

    def references(self, source: str) -> References:
        """What the template uses. Raises TemplateError with `line` where it is not a template."""
        if not self.is_template(source):
            return References({}, ())
        try:
            self._template(source)  # finds what only compiling finds
            return references_in(self._environment, source)
        except Exception as error:
            raise self._error(error, source, {}) from error

    def _compiled(self, source: str) -> Template:
        if len(source) > MAX_SOURCE:
            raise LimitExceeded(f"the template has {len(source):,} characters, at most {MAX_SOURCE:,} are allowed")
        refill()
        return self._environment.from_string(source)

    def _compiled_expression(self, source: str) -> Template | None:
        if len(source) > MAX_SOURCE:
            return None
        refill()
        body = self._environment.parse(source).body
        if len(body) != 1 or not isinstance(body[0], nodes.Output) or len(body[0].nodes) != 1:
            return None
        expression = body[0].nodes[0]
        if isinstance(expression, nodes.TemplateData):
            return None
        assignment = nodes.Assign(nodes.Name("result", "store"), expression, lineno=1)
        return self._environment.from_string(nodes.Template([assignment], lineno=1))

    def _error(self, error: Exception, source: str, variables: Mapping[str, object]) -> TemplateError:
        if isinstance(error, TemplateSyntaxError):
            return TemplateError(str(error.message), line=str(error.lineno))
        if isinstance(error, MissingVariable):
            return self._missing(error, source, variables)
        if isinstance(error, RecursionError):
            return TemplateError("the template is nested too deeply, or a macro calls itself without end")
        return TemplateError(f"the template cannot be filled in: {error or type(error).__name__}")

    def _missing(self, error: MissingVariable, source: str, variables: Mapping[str, object]) -> TemplateError:
        chains = list(chains_of(self._environment.parse(source)))
        known = [chain for chain in chains if chain.root in variables]
        for chain in (*(c for c in known if not c.guarded), *known):
            if chain.keys and first_missing(chain, variables) == error.name:
                found = Reference(chain.root, chain.keys[: chain.keys.index(error.name) + 1])
                return TemplateError(self._missing_message(found, variables), variable=str(found))
        named = (str(chain) for chain in chains if error.name in (chain.root, *chain.keys[-1:]))
        variable = next(named, str(error.name))
        return TemplateError(f"{variable!r} is not there", variable=variable)

    @staticmethod
    def _missing_message(found: Reference, values: Mapping[str, object]) -> str:
        holder: Any = values
        for key in (found.root, *found.keys[:-1]):
            holder = holder[key]
        near = ""
        key = found.keys[-1]
        if isinstance(holder, Mapping) and isinstance(key, str):
            close = difflib.get_close_matches(key, [k for k in holder if isinstance(k, str)], 1)
            near = f"; did you mean {close[0]!r}?" if close else ""
            if key in ("items", "keys", "values", "get"):
                near = "; a.b is a key, never a method: use `| items` or `| default(…)`"
        return f"'{found}' is not there for this run{near}"
