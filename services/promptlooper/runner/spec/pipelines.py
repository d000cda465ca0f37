"""Models, pipelines and stages of an experiment file in their normal form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promptlooper.document import Path
from promptlooper.experiment import MessageTemplate, ModelEntry, Pipeline, Stage
from promptlooper.jsonvalue import Json
from promptlooper.runner.spec.forms import Form
from promptlooper.runner.spec.problems import nearest
from promptlooper.runner.spec.stage_keys import CALL_KEYS, StageKeys
from promptlooper.runner.spec.values import noun

STAGE_KEYS = ("name", "system", "prompt", "messages", "model", "params", "timeout", *CALL_KEYS)
_ONE_OF = ("prompt", "prompts", "pipelines")
_ONLY_PIPELINE = "default"  # the name of what `prompt:` makes

Located = tuple[ModelEntry, Path]


class PipelineReader:
    """Reads what follows from `models` and `pipelines`; origins go to the form's notes."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._notes = form.notes
        self._shared: list[Located] = []

    def models(self, document: dict[str, Any]) -> None:
        """The experiment's models: what every pipeline is run with that names none itself."""
        self._shared = self._entries((), document, known=[]) or []

    def pipelines(self, document: dict[str, Any]) -> tuple[Pipeline, ...]:
        given = [key for key in _ONE_OF if key in document]
        if len(given) != 1:
            self._notes.unread.add("pipelines")
            said = "there is none" if not given else f"there are {' and '.join(repr(key) for key in given)}"
            self._notes.add((given[-1],) if given else (), f"exactly one of {', '.join(_ONE_OF)} is needed; {said}")
        found: list[Pipeline] = []
        for key in given[:1]:
            if key == "prompt":
                self._prompt(found, _ONLY_PIPELINE, (key,), document[key])
            elif key == "prompts":
                for name, prompt in self._named(key, document[key]):
                    self._prompt(found, name, (key, name), prompt)
            else:
                for name, pipeline in self._named(key, document[key]):
                    self._pipeline(found, name, (key, name), pipeline)
        return tuple(found)

    def _named(self, key: str, value: Json) -> list[tuple[str, Json]]:
        named = self._form.mapping((key,), value, f"{key!r}")
        if not named:
            self._notes.unread.add("pipelines")
        if named is not None and not named:
            self._notes.add((key,), f"{key!r} must not be empty")
        return list((named or {}).items())

    def _pipeline(self, found: list[Pipeline], name: str, path: Path, value: Json) -> None:
        models = self._shared
        stages: Json = value
        stages_path = path
        if isinstance(value, dict):
            self._notes.check_keys(path, value, ("models", "model", "stages"), (), f"pipeline {name!r}")
            stages, stages_path = value.get("stages"), (*path, "stages")
            own = self._entries(path, value, known=self._shared)
            models = self._shared if own is None else own
        if not isinstance(stages, list) or not stages:
            said = noun(stages) if not isinstance(stages, list) else "an empty one"
            self._notes.unread.add("pipelines")
            self._notes.add(stages_path, f"pipeline {name!r} must be a list of stages, not {said}")
            return
        field = f"pipelines[{len(found)}]"
        read = [self._stage(f"{field}.stages[{i}]", (*stages_path, i), stage) for i, stage in enumerate(stages)]
        if None in read:
            self._notes.unread.add("pipelines")
        complete = [stage or Stage(()) for stage in read]
        if all(stage.model for stage in complete) and len(models) <= 1:
            last = complete[-1].model
            kept = [located for located in models if located[0].model == last]
            models = kept or [(ModelEntry(last, last), (*stages_path, len(complete) - 1, "model"))]
        self._add(found, name, path, complete, models)

    def _prompt(self, found: list[Pipeline], name: str, path: Path, value: Json) -> None:
        text = self._form.text_or_file(path, value, "a prompt")
        if text is None:
            self._notes.unread.add("pipelines")
        else:
            stage = f"pipelines[{len(found)}].stages[0]"
            self._notes.came_from(stage, path)
            self._notes.came_from(f"{stage}.messages[0].content", text.origin)
            self._add(found, name, path, [Stage((MessageTemplate("user", text.text),))], self._shared)

    def _add(
        self, found: list[Pipeline], name: str, path: Path, stages: Sequence[Stage], models: Sequence[Located]
    ) -> None:
        field = f"pipelines[{len(found)}]"
        self._notes.came_from(field, path)
        for index, (_, origin) in enumerate(models):
            self._notes.came_from(f"{field}.models[{index}]", origin)
        found.append(Pipeline(name, tuple(stages), tuple(entry for entry, _ in models)))

    def _stage(self, field: str, path: Path, value: Json) -> Stage | None:
        self._notes.came_from(field, path)
        if not isinstance(value, dict):
            self._notes.add(path, f"a stage must be a mapping with 'prompt', not {noun(value)}")
            return None
        self._notes.check_keys(path, value, STAGE_KEYS, (), "a stage")
        messages = self._messages(field, path, value)
        name = self._form.text((*path, "name"), value["name"], "name") if "name" in value else ""
        model = self._form.text((*path, "model"), value["model"], "model") if value.get("model") is not None else ""
        timeout = None
        if value.get("timeout") is not None:
            timeout = self._form.seconds((*path, "timeout"), value["timeout"], "timeout")
        params = self._form.params((*path, "params"), value.get("params"))
        besides = StageKeys(self._form, field, path, value).read()
        if messages is None or name is None or model is None:
            return None
        return Stage(messages, name, model, params, timeout, **besides)

    def _messages(self, field: str, path: Path, value: dict[str, Json]) -> tuple[MessageTemplate, ...] | None:
        if ("prompt" in value) == ("messages" in value):
            self._notes.add(path, "a stage needs exactly one of 'prompt' and 'messages'")
            return None
        parts: list[tuple[Json, Json, Path]] = []  # role, content, where
        if "messages" in value:
            if "system" in value:
                self._notes.add((*path, "system"), "'system' goes with 'prompt'; write it as the first of 'messages'")
            at = (*path, "messages")
            for index, message in enumerate(self._form.items(at, value["messages"], "messages") or []):
                entry = self._form.mapping((*at, index), message, "a message")
                if entry is None:
                    return None
                self._notes.check_keys((*at, index), entry, ("role", "content"), (), "a message")
                if "role" not in entry or "content" not in entry:
                    self._notes.add((*at, index), "a message needs 'role' and 'content'")
                    return None
                parts.append((entry["role"], entry["content"], (*at, index, "content")))
            if not parts:
                self._notes.add(at, "'messages' must not be empty")
                return None
        else:
            if value.get("system") is not None:
                parts.append(("system", value["system"], (*path, "system")))
            parts.append(("user", value["prompt"], (*path, "prompt")))
        found: list[MessageTemplate] = []
        for role, content, at in parts:
            role_text = self._form.text((*at[:-1], "role"), role, "role")
            text = self._form.text_or_file(at, content, "content" if "messages" in value else str(at[-1]))
            if role_text is None or text is None:
                return None
            self._notes.came_from(f"{field}.messages[{len(found)}].content", text.origin)
            if "messages" in value:
                self._notes.came_from(f"{field}.messages[{len(found)}].role", (*at[:-1], "role"))
            found.append(MessageTemplate(role_text, text.text))
        return tuple(found)

    def _entries(self, path: Path, mapping: dict[str, Any], known: Sequence[Located]) -> list[Located] | None:
        """The entries of `models` or `model`; None where there is neither."""
        if "models" in mapping and "model" in mapping:
            self._notes.add((*path, "model"), "only one of 'models' and 'model' is needed")
        if "models" in mapping:
            at = (*path, "models")
            values = self._form.items(at, mapping["models"], "models")
            if values is not None and not values:
                self._notes.add(at, "'models' must not be empty")
            found = [self._entry((*at, i), value, known) for i, value in enumerate(values or [])]
        elif "model" in mapping:
            found = [self._entry((*path, "model"), mapping["model"], known)]
        else:
            return None
        if None in found or not found:
            self._notes.unread.add("models")
        return [entry for entry in found if entry is not None]

    def _entry(self, path: Path, value: Json, known: Sequence[Located]) -> Located | None:
        if isinstance(value, str):
            for entry, _ in known:
                if value in (entry.name, entry.model):
                    return entry, path
            if "/" not in value:
                near = nearest(value, [entry.name for entry, _ in known])
                self._notes.add(path, f"the model {value!r} is not PROVIDER/MODEL{near}")
                return None
            return ModelEntry(value, value), path
        if not isinstance(value, dict):
            self._notes.add(path, f"a model must be PROVIDER/MODEL or a mapping with 'model', not {noun(value)}")
            return None
        self._notes.check_keys(path, value, ("name", "model", "params"), (), "a model")
        if "model" not in value:
            self._notes.add(path, "a model needs 'model': PROVIDER/MODEL")
            return None
        model = self._form.text((*path, "model"), value["model"], "model")
        name = self._form.text((*path, "name"), value["name"], "name") if "name" in value else model
        if model is None or name is None:
            return None
        return ModelEntry(name, model, self._form.params((*path, "params"), value.get("params"))), path
