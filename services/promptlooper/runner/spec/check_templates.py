"""What can be known of templates before anything runs: syntax, roots, keys that nothing has, stages not yet run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from promptlooper.errors import Problem, TemplateError
from promptlooper.experiment import ExperimentSpec, Stage
from promptlooper.jsonvalue import Json
from promptlooper.runner.filters import STRING_METHODS
from promptlooper.runner.references import Reference
from promptlooper.runner.render import SCORER_ROOTS, STAGE_ROOTS, Renderer, StageView
from promptlooper.runner.spec.problems import nearest

_ITEM_ROOTS = ("item", "item_index")
_MAPPING_METHODS = ("items", "keys", "values", "get")


def texts_in(value: Json) -> Iterator[str]:
    """Every text inside a JSON value, keys not included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_in(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from texts_in(item)


def _templates_of(stage: Stage) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Field, source and the roots that it may use."""
    roots = (*STAGE_ROOTS, *_ITEM_ROOTS) if stage.for_each else STAGE_ROOTS
    for index, message in enumerate(stage.messages):
        yield f"messages[{index}].content", message.content, roots
    for index, image in enumerate(stage.images):
        yield f"images[{index}]", image, roots
    for name, result in stage.tool_results.items():
        yield f"tool_results.{name}", result, (*roots, "arguments")
    yield "for_each", stage.for_each, STAGE_ROOTS


class TemplateCheck:
    """Checks the templates of one spec; of roots that are `unread`, keys are not looked up."""

    def __init__(self, spec: ExperimentSpec, renderer: Renderer, unread: Collection[str] = ()) -> None:
        self._spec = spec
        self._renderer = renderer
        self._unread = unread
        self._keys: dict[str, None] = {}
        self._longest = 0
        self._has_text = False
        self._has_expected = any(row.expected is not None for row in spec.inputs)
        for row in spec.inputs:
            if isinstance(row.value, Mapping):
                self._keys.update(dict.fromkeys(row.value))
            elif isinstance(row.value, str):
                self._has_text = True
            elif isinstance(row.value, Sequence):
                self._longest = max(self._longest, len(row.value))

    def problems(self) -> Iterator[Problem]:
        for i, pipeline in enumerate(self._spec.pipelines):
            for j, stage in enumerate(pipeline.stages):
                for field, source, roots in _templates_of(stage):
                    yield from self._of(f"pipelines[{i}].stages[{j}].{field}", source, roots, pipeline.stages, j)
        for i, scorer in enumerate(self._spec.scorers):
            yield from self._of(f"scorers[{i}].output", scorer.output, SCORER_ROOTS, None, 0)
            for text in texts_in(scorer.value):
                yield from self._of(f"scorers[{i}].value", text, SCORER_ROOTS, None, 0)

    def _of(
        self, field: str, source: str, roots: tuple[str, ...], stages: Sequence[Stage] | None, index: int
    ) -> Iterator[Problem]:
        if not self._renderer.is_template(source):
            return
        try:
            found = self._renderer.references(source)
        except TemplateError as error:
            line = int(error.metadata.get("line", "1"))
            yield Problem(field, _at(source, line, f"the template is wrong: {error.message}"))
            return
        for root, line in found.roots.items():
            if root not in roots:
                yield Problem(field, _at(source, line, _unknown_root(root, roots)))
        said: set[str] = set()
        for reference in found.paths:
            if reference.root in roots and (reference.keys or reference.root == "expected") and not reference.guarded:
                message = self._problem(reference, stages, index)
                if message is not None and message not in said:
                    said.add(message)
                    yield Problem(field, _at(source, reference.line, message))

    def _problem(self, reference: Reference, stages: Sequence[Stage] | None, index: int) -> str | None:
        if reference.root == "input":
            return self._input_problem(reference) if "inputs" not in self._unread else None
        if reference.root == "expected":
            return None if self._has_expected or "inputs" in self._unread else self._expected_problem()
        if reference.root == "config":
            return _path_problem(reference, self._spec.config) if "config" not in self._unread else None
        if reference.root == "files" and "files" not in self._unread:
            key = reference.keys[0]
            if key in self._spec.files:
                return None
            return f"'files' of the experiment has no {key!r}{nearest(str(key), self._spec.files)}"
        if reference.root == "stages":
            return self._stage_problem(reference, stages, index)
        return None

    def _expected_problem(self) -> str:
        if all(row.value is None for row in self._spec.inputs):
            return "'expected': there are no inputs, so it is null; add 'inputs'"
        return f"'expected': no input row has 'expected'{nearest('expected', self._keys)}"

    def _input_problem(self, reference: Reference) -> str | None:
        key = reference.keys[0]
        if isinstance(key, int):
            known = self._has_text or str(key) in self._keys or -self._longest <= key < self._longest
        else:
            known = key in self._keys or (self._has_text and key in STRING_METHODS)
        if known:
            return None
        what = f"'{Reference('input', (key,))}'"
        if key == "expected" and self._spec.inputs:
            return f"{what} is not part of the input; write {{{{ expected }}}}"
        if key in _MAPPING_METHODS and self._keys:
            return f"{what}: no input row has {key!r}; a.b is a key, never a method: loop over {{{{ input | items }}}}"
        if all(row.value is None for row in self._spec.inputs):
            return f"{what}: there are no inputs, so 'input' is null; add 'inputs'"
        return f"{what}: no input row has {key!r}{nearest(str(key), self._keys)}"

    def _stage_problem(self, reference: Reference, stages: Sequence[Stage] | None, index: int) -> str | None:
        key = reference.keys[0]
        what = f"'{Reference('stages', (key,))}'"
        if stages is None:  # a scorer: it sees the stages of whichever pipeline ran
            names = [stage.name for pipeline in self._spec.pipelines for stage in pipeline.stages if stage.name]
            most = max((len(pipeline.stages) for pipeline in self._spec.pipelines), default=0)
            known = key in names if isinstance(key, str) else -most <= key < most
            if not known and "pipelines" not in self._unread:
                return f"{what}: no pipeline has such a stage{nearest(str(key), names)}"
        elif isinstance(key, str):
            names = [stage.name for stage in stages[:index] if stage.name]
            if key not in names:
                if any(key == stage.name for stage in stages[index:]):
                    return f"{what}: the stage {key!r} has not run yet"
                return f"{what}: no earlier stage is named {key!r}{nearest(key, names)}"
        elif not -index <= key < index:
            return f"{what}: the stage {key} has not run yet; before this one there are {index}"
        if len(reference.keys) > 1 and isinstance(reference.keys[1], str) and reference.keys[1] not in StageView.NAMES:
            name = reference.keys[1]
            return f"a stage has no {name!r}{nearest(name, StageView.NAMES)}; it has {', '.join(StageView.NAMES)}"
        return None


def _at(source: str, line: int, message: str) -> str:
    return f"line {line} of the template: {message}" if "\n" in source.strip("\n") else message


def _unknown_root(root: str, roots: tuple[str, ...]) -> str:
    if root in _ITEM_ROOTS:
        return f"{root!r} is known in stages with 'for_each' only"
    if root == "arguments":
        return "'arguments' is known in 'tool_results' only"
    if root == "output":
        return "'output' is known to scorers only; write {{ prev_output }} for the output of the stage before"
    if root == "loop":
        return "'loop' is known inside a for loop only"
    return f"{root!r} is not a name that templates know{nearest(root, roots)}"


def _path_problem(reference: Reference, value: Any) -> str | None:
    """The first key of the path that a value known now does not have."""
    for depth, key in enumerate(reference.keys):
        if isinstance(value, str) and key in STRING_METHODS:
            return None
        known: Any = ()
        try:
            if isinstance(value, Mapping):
                known = [name for name in value if isinstance(name, str)]
                value = value[str(key)]
            elif isinstance(value, str | list | tuple) and isinstance(key, int):
                value = value[key]
            else:
                raise KeyError(key)
        except LookupError:
            what = Reference(reference.root, reference.keys[: depth + 1])
            return f"'{what}': there is no {key!r} in the experiment's {reference.root}{nearest(str(key), known)}"
    return None
