"""The sweep, gates, limits and cache policy of an experiment file in their normal form."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeVar

from promptlooper.document import Path
from promptlooper.experiment import CacheMode, CachePolicy, ExecutionMode, ExecutionPolicy, Gate, Limits
from promptlooper.jsonvalue import Json, JsonObject
from promptlooper.runner.spec.forms import Form, param
from promptlooper.runner.spec.problems import choices, nearest
from promptlooper.runner.spec.values import nanousd, noun

ModeT = TypeVar("ModeT", bound=Enum)
_LATER_GATES = ("min_pass_rate", "max_cost_usd", "max_p95_latency_ms", "max_drop")
_TIMEOUTS = ("stage_timeout", "run_timeout", "experiment_timeout")
_MAX_POINTS = 10_000


class SectionReader:
    def __init__(self, form: Form) -> None:
        self._form = form
        self._notes = form.notes

    def _mapping(self, key: str, value: Json) -> dict[str, Any]:
        return {} if value is None else self._form.mapping((key,), value, repr(key)) or {}

    def sweep(self, document: dict[str, Any]) -> tuple[JsonObject, ...]:
        value = document.get("sweep")
        if value is None:
            return ({},)
        if isinstance(value, list):
            if not value:
                self._notes.add(("sweep",), "'sweep' must not be empty")
            points = [self._form.params(("sweep", i), point, "a point of the sweep") for i, point in enumerate(value)]
            return tuple(points) or ({},)
        if not isinstance(value, dict):
            self._notes.add(("sweep",), f"'sweep' must be axes or a list of points, not {noun(value)}")
            return ({},)
        if not value:
            self._notes.add(("sweep",), "'sweep' must not be empty")
        crossed: list[dict[str, Json]] = [{}]
        for name, values in value.items():
            if not isinstance(values, list):
                self._notes.add(("sweep", name), f"the axis {name!r} must be a list of values, not {noun(values)}")
            elif not values:
                self._notes.add(("sweep", name), f"the axis {name!r} is empty; give it values or remove it")
            elif len(crossed) * len(values) > _MAX_POINTS:
                self._notes.add(("sweep", name), f"the sweep has more than {_MAX_POINTS:,} points")
            else:
                crossed = [{**point, name: param(name, item)} for point in crossed for item in values]
        for index in range(len(crossed)):
            self._notes.came_from(f"sweep[{index}]", ("sweep",))
        return tuple(crossed)

    def gates(self, document: dict[str, Any]) -> tuple[Gate, ...]:
        value = document.get("gates")
        if value is None:
            return ()
        single = isinstance(value, dict)
        found: list[Gate] = []
        for index, entry in enumerate([value] if single else self._form.items(("gates",), value, "'gates'") or []):
            at: Path = ("gates",) if single else ("gates", index)
            gate = self._form.mapping(at, entry, "a gate")
            if gate is None:
                continue
            self._notes.check_keys(at, gate, ("min_scores", "max_failed_runs"), _LATER_GATES, "a gate")
            if not gate:
                self._notes.add(at, "a gate must not be empty")
            scores: dict[str, float] = {}
            if "min_scores" in gate:
                at_scores = (*at, "min_scores")
                for name, least in (self._form.mapping(at_scores, gate["min_scores"], "'min_scores'") or {}).items():
                    number = self._form.number((*at_scores, name), least, f"the least score of {name!r}")
                    if number is not None:
                        scores[name] = number
            most = gate.get("max_failed_runs")
            if most is not None:
                most = self._form.integer((*at, "max_failed_runs"), most, "'max_failed_runs'")
            self._notes.came_from(f"gates[{len(found)}]", at)
            found.append(Gate(scores, most))
        return tuple(found)

    def limits(self, document: dict[str, Any], local: bool) -> Limits:
        value = self._mapping("limits", document.get("limits"))
        known = ("max_concurrency", "budget_usd", "budget_tokens", *_TIMEOUTS)
        self._notes.check_keys(("limits",), value, known, (), "'limits'")
        at: dict[str, Any] = {key: item for key, item in value.items() if item is not None}
        concurrency = tokens = budget = None
        if "max_concurrency" in at:
            concurrency = self._form.integer(("limits", "max_concurrency"), at["max_concurrency"], "max_concurrency")
        if "budget_tokens" in at:
            tokens = self._form.integer(("limits", "budget_tokens"), at["budget_tokens"], "budget_tokens")
        timeouts = {name: self._form.seconds(("limits", name), at[name], name) for name in _TIMEOUTS if name in at}
        if "budget_usd" in at:
            try:
                budget = nanousd(at["budget_usd"])
            except ValueError as error:
                self._notes.add(("limits", "budget_usd"), f"budget_usd: {error}")
        default = 2 if local else 64
        return Limits(
            default if concurrency is None else concurrency,
            budget,
            tokens,
            timeouts.get("stage_timeout") or 60.0,
            timeouts.get("run_timeout"),
            timeouts.get("experiment_timeout"),
        )

    def cache(self, document: dict[str, Any]) -> CachePolicy:
        value = self._with_mode(document, "cache", ("mode", "max_age", "namespace"))
        mode = self._mode(document, "cache", value, CacheMode, CacheMode.READ_WRITE)
        age = value.get("max_age")
        if age is not None:
            age = self._form.seconds(("cache", "max_age"), age, "max_age")
        namespace = self._form.text(("cache", "namespace"), value.get("namespace", "default"), "'namespace'")
        return CachePolicy(mode, age, namespace or "default")

    def execution(self, document: dict[str, Any]) -> ExecutionPolicy:
        value = self._with_mode(document, "execution", ("mode", "timeout"))
        mode = self._mode(document, "execution", value, ExecutionMode, ExecutionMode.DIRECT)
        if value.get("timeout") is None:
            return ExecutionPolicy(mode)
        if mode is ExecutionMode.DIRECT and "mode" not in value:
            self._notes.add(("execution",), "'timeout' is of batches; add 'mode: batch', or set limits.stage_timeout")
        timeout = self._form.seconds(("execution", "timeout"), value["timeout"], "timeout")
        return ExecutionPolicy(mode) if timeout is None else ExecutionPolicy(mode, timeout)

    def _with_mode(self, document: dict[str, Any], key: str, known: tuple[str, ...]) -> dict[str, Any]:
        """A section whose short form is its mode."""
        value = document.get(key)
        if isinstance(value, str):
            value = {"mode": value}
            self._notes.came_from(f"{key}.mode", (key,))
        value = self._mapping(key, value)
        self._notes.check_keys((key,), value, known, (), repr(key))
        return value

    def _mode(
        self, document: dict[str, Any], key: str, value: dict[str, Any], modes: type[ModeT], usual: ModeT
    ) -> ModeT:
        if "mode" not in value:
            return usual
        said, names = value["mode"], [each.value for each in modes]
        if said in names:
            return modes(said)
        at: Path = (key, "mode") if isinstance(document.get(key), dict) else (key,)
        near = nearest(said, names) if isinstance(said, str) else ""
        self._notes.add(at, f"the {key} mode must be {choices(names)}, not {noun(said)}{near}")
        return usual
