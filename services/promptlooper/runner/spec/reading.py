"""Experiment files: short forms and files are written out, and everything that is wrong is said at once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptlooper.document import NotUtf8, decoded, read_document
from promptlooper.errors import Problem
from promptlooper.experiment import ExperimentSpec, InputRow, MessageTemplate
from promptlooper.jsonvalue import Json
from promptlooper.runner.render import Renderer
from promptlooper.runner.spec.check_spec import problems_of
from promptlooper.runner.spec.data_set import RowReader
from promptlooper.runner.spec.files import DiskFolder, Folder
from promptlooper.runner.spec.forms import Form
from promptlooper.runner.spec.notes import Notes, path_of
from promptlooper.runner.spec.overrides import Overrides, applied, check_effect, selected
from promptlooper.runner.spec.pipelines import PipelineReader
from promptlooper.runner.spec.problems import FilePosition, FileProblem, InvalidFile, in_order
from promptlooper.runner.spec.rows import Rows, with_ids
from promptlooper.runner.spec.scorers import SCORER_TYPES, ScorerReader
from promptlooper.runner.spec.sections import SectionReader
from promptlooper.runner.spec.values import noun

KEYS = (
    *("version", "name", "description", "project", "tags", "metadata", "config", "files", "inputs", "models", "model"),
    *("params", "sweep", "repeats", "prompt", "prompts", "pipelines", "scorers", "gates", "limits", "cache"),
    "execution",
)
USUAL_STEM = "promptlooper"  # a file of that name is called by its folder
LATER_KEYS = ("judge", "metrics", "baseline")


class ReadExperiment:
    """A spec, and where each of its fields stands."""

    def __init__(self, spec: ExperimentSpec, notes: Notes, rows: Rows) -> None:
        self.spec = spec
        self._notes = notes
        self._rows = rows

    def origin(self, field: str) -> FilePosition:
        """Where a field of the normal form (`pipelines[0].stages[1].model`, `scorers[0]`) was written."""
        path = path_of(field)
        if len(path) > 1 and path[0] == "inputs" and isinstance(path[1], int) and path[1] < len(self._rows.places):
            return self._rows.position(self._rows.places[path[1]])
        return self._notes.origin(field)

    def located(self, problem: Problem) -> FileProblem:
        """The problem with its place in the file instead of its field."""
        position = self.origin(problem.field)
        return FileProblem(position.file, position.line, problem.message)

    def for_services(self) -> ReadExperiment | None:
        """What is left of an experiment that has problems of its own, to ask the services what they would refuse too:
        its models and scorers, with templates and inputs that nothing can be said of. None where no pipeline is."""
        kept = [i for i, each in enumerate(self.spec.pipelines) if each.models and each.stages]
        if not kept:
            return None
        self._notes.keep("pipelines", kept)
        said = (MessageTemplate("user", "text"),)
        pipelines = [self.spec.pipelines[i] for i in kept]
        spec = replace(
            self.spec,
            pipelines=tuple(
                replace(each, stages=tuple(replace(stage, messages=said) for stage in each.stages))
                for each in pipelines
            ),
            scorers=tuple(
                replace(each, value=self._neutral_value(i, each.value), output="")
                for i, each in enumerate(self.spec.scorers)
            ),
            inputs=self.spec.inputs[:1],
            gates=(),
        )
        return ReadExperiment(spec, self._notes, self._rows)

    def _neutral_value(self, index: int, value: Json) -> Json:
        return _NEUTRAL if f"scorers[{index}].value" in self._notes.unread else _neutral(value)


_NEUTRAL = "{{ output }}"


def _neutral(value: Json) -> Json:
    """The value with another template, that refers to nothing that may be missing, for each of its own."""
    if isinstance(value, str):
        return _NEUTRAL if Renderer.is_template(value) else value
    if isinstance(value, dict):
        return {key: _neutral(item) for key, item in value.items()}
    return [_neutral(item) for item in value] if isinstance(value, list) else value


def read_experiment(
    path: Path, overrides: Overrides | None = None, scorer_types: Collection[str] = SCORER_TYPES
) -> ReadExperiment:
    """The experiment of a file. Raises InvalidFile with everything that is wrong with it."""
    path = Path(path)
    try:
        text = decoded(path.read_bytes())
    except FileNotFoundError as error:
        message = "there is no such file; `promptlooper init` writes one"
        raise InvalidFile([FileProblem(str(path), None, message)]) from error
    except OSError as error:
        raise InvalidFile([FileProblem(str(path), None, f"it cannot be read: {error.strerror}")]) from error
    except NotUtf8 as error:
        raise InvalidFile([FileProblem(str(path), error.line, str(error))]) from error
    name = path.resolve().parent.name if path.stem == USUAL_STEM else path.stem
    return read_text(text, str(path), name, DiskFolder(path), overrides, scorer_types)


def read_text(
    text: str,
    path: str,
    name: str,
    folder: Folder,
    overrides: Overrides | None = None,
    scorer_types: Collection[str] = SCORER_TYPES,
) -> ReadExperiment:
    """The experiment of a file's text. `path` is what messages call it, `name` what the experiment is called where
    it does not say. Raises InvalidFile."""
    reader = _Reader(text, path, name, folder, overrides or Overrides(), scorer_types)
    found = reader.read()
    problems = in_order(reader.notes.problems, path)
    if problems:
        raise InvalidFile(problems, None if found is None else found.for_services())
    if found is None:
        raise InvalidFile([FileProblem(path, None, "nothing could be read")])
    return found


class _Reader:
    def __init__(
        self,
        text: str,
        path: str,
        name: str,
        folder: Folder,
        overrides: Overrides,
        scorer_types: Collection[str],
    ) -> None:
        self._name = name or "experiment"
        self._overrides = overrides
        self._scorer_types = scorer_types
        self._document = read_document(text, json=path.endswith(".json"))
        self.notes = Notes(path, self._document)
        self._form = Form(self.notes, folder)

    def read(self) -> ReadExperiment | None:
        value = self._document.value
        if not isinstance(value, dict):
            if not self.notes.problems:
                self.notes.add((), f"an experiment must be a mapping with a prompt, not {noun(value)}")
            return None
        document = applied(value, self._overrides, self.notes)
        self.notes.check_keys((), document, KEYS, LATER_KEYS, "an experiment")
        if document.get("version", 1) != 1 or isinstance(document.get("version"), bool):
            self.notes.add(("version",), f"this PromptLooper reads version 1, not {noun(document['version'])}")
        rows = self._rows(document)
        spec = self._spec(document)
        if rows is None:
            self.notes.unread.add("inputs")
        spec, rows = selected(spec, rows or self._no_rows(), self._overrides, self.notes)
        found = ReadExperiment(spec, self.notes, rows)
        for problem in problems_of(spec, unread=self.notes.unread, lost_scorers=self.notes.lost_scorers):
            located = found.located(problem)
            self.notes.add_at(FilePosition(located.file, located.line), located.message)
        check_effect(spec, self._overrides, self.notes)
        return found

    def _rows(self, document: dict[str, Any]) -> Rows | None:
        if "inputs" not in document:
            return self._no_rows()
        return RowReader(self._form).rows(document["inputs"])

    def _spec(self, document: dict[str, Any]) -> ExperimentSpec:
        form = self._form
        sections = SectionReader(form)
        pipelines = PipelineReader(form)
        pipelines.models(document)
        read = pipelines.pipelines(document)
        models = [
            model
            for pipeline in read
            for model in (*(entry.model for entry in pipeline.models), *(stage.model for stage in pipeline.stages))
        ]
        local = any(model.startswith("local/") for model in models)
        repeats = form.integer(("repeats",), document["repeats"], "repeats") if "repeats" in document else 1
        return ExperimentSpec(
            name=self._text(document, "name", self._name),
            description=self._text(document, "description", ""),
            project=self._text(document, "project", "default"),
            tags=self._tags(document),
            metadata=self._metadata(document),
            config=self._mapping(document, "config"),
            files=self._files(document),
            inputs=(),
            params=form.params(("params",), document.get("params")),
            sweep=sections.sweep(document),
            repeats=1 if repeats is None else repeats,
            pipelines=read,
            scorers=ScorerReader(form, self._scorer_types).scorers(document.get("scorers") or []),
            gates=sections.gates(document),
            limits=sections.limits(document, local),
            cache=sections.cache(document),
            execution=sections.execution(document),
        )

    def _text(self, document: dict[str, Any], key: str, default: str) -> str:
        if key not in document:
            return default
        found = self._form.text((key,), document[key], repr(key))
        return default if found is None else found

    def _mapping(self, document: dict[str, Any], key: str) -> dict[str, Any]:
        value = document.get(key)
        if value is None:
            return {}
        found = self._form.mapping((key,), value, repr(key))
        if found is None:
            self.notes.unread.add(key)
        return found or {}

    def _tags(self, document: dict[str, Any]) -> tuple[str, ...]:
        value = document.get("tags")
        tags = self._form.items(("tags",), value, "'tags'") if value is not None else []
        read = [self._form.text(("tags", i), tag, "a tag") for i, tag in enumerate(tags or [])]
        return tuple(tag for tag in read if tag is not None)

    def _metadata(self, document: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in self._mapping(document, "metadata").items():
            text = self._form.text(("metadata", key), value, f"metadata {key!r}")
            if text is not None:
                found[key] = text
        return found

    def _files(self, document: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in self._mapping(document, "files").items():
            name = self._form.file_name(value) or value
            text = self._form.file(("files", key), name, f"file {key!r}")
            if text is None:
                self.notes.unread.add("files")
            else:
                found[key] = text.text
        return found

    def _no_rows(self) -> Rows:
        """The one row of an experiment without inputs."""
        return Rows(tuple(with_ids([InputRow("", None)])), (0,), lambda place: self.notes.position(("inputs",)))
