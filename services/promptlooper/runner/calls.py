"""Which call a run makes next, and what it says.

A stage takes one call, or one per item of `for_each`, and more rounds of each: with the results of tools that the model
asked for, or because an answer could not be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from promptlooper.completion import Message, ToolCall, arguments_of
from promptlooper.errors import OutputInvalid, TemplateError
from promptlooper.experiment import ExperimentSpec, InputRow, Stage
from promptlooper.jsonvalue import Json
from promptlooper.run import StageResult
from promptlooper.runner.render import Renderer, variables

MOST_ITEMS = 100  # of for_each
MOST_ROUNDS = 10  # of one item with results of tools: a model that always asks again ends there


@dataclass(frozen=True, slots=True)
class Call:
    stage_index: int
    iteration: int = 0  # which item of for_each
    round: int = 0  # which call of it


class Conversation:
    """The calls of one run: what its results so far ask for."""

    def __init__(self, renderer: Renderer, spec: ExperimentSpec, stages: Sequence[Stage], row: InputRow) -> None:
        self._renderer, self._spec, self._stages, self._row = renderer, spec, stages, row

    def next_call(self, results: Sequence[StageResult]) -> Call | None:
        """None after the last one. Raises TemplateError where `for_each` gives no list."""
        if not results:
            return Call(0)
        last = results[-1]
        stage, index = self._stages[last.stage_index], last.stage_index
        if last.error is not None or self._tools_answer(stage, last):
            return Call(index, last.iteration, last.round + 1)
        if stage.for_each and last.iteration + 1 < len(self.items(index, results)):
            return Call(index, last.iteration + 1)
        return Call(index + 1) if index + 1 < len(self._stages) else None

    def fault(self, results: Sequence[StageResult]) -> OutputInvalid | None:
        """Why the run ends with its last result: it can't be used, and there is no other try."""
        last = results[-1]
        if last.error is None:
            return None
        tries = [r for r in results if _place(r) == _place(last) and r.error is not None]
        if len(tries) <= self._stages[last.stage_index].retries_on_invalid:
            return None
        return OutputInvalid(last.error.message)

    def messages(self, call: Call, results: Sequence[StageResult]) -> tuple[Message, ...]:
        """What the call says. Raises TemplateError."""
        stage = self._stages[call.stage_index]
        if call.round:
            return (*results[-1].conversation, *self._more(stage, call, results))
        said = self._renderer.messages(stage, self._variables(call, results))
        if not stage.continue_conversation or not results:
            return said
        # The conversation has its own system prompt: of for_each, the one that its first item began with.
        more = (message for message in said if message.role != "system")
        return (*results[-1].conversation, *_unanswered(results[-1]), *more)

    def _more(self, stage: Stage, call: Call, results: Sequence[StageResult]) -> tuple[Message, ...]:
        """What is said to an answer that asks for tools or can't be used."""
        last = results[-1]
        if last.tool_calls:
            values = self._variables(call, results)
            return tuple(
                Message("tool", self._answer(stage, asked, values), tool_call_id=asked.id, name=asked.name)
                for asked in last.tool_calls
            )
        why = last.error.message if last.error is not None else ""
        return (Message("user", f"{why}\nAnswer again, with the corrected JSON and nothing else."),)

    def _answer(self, stage: Stage, asked: ToolCall, values: dict[str, object]) -> str:
        arguments = arguments_of(asked)
        if arguments is None:
            return "Error: the arguments are not a JSON object. Call the tool again."
        template = stage.tool_results.get(asked.name)
        if template is None:
            return "Error: this was not done, as another call of the same turn was wrong. Call the tool again."
        return self._renderer.text(template, {**values, "arguments": arguments})

    @staticmethod
    def _tools_answer(stage: Stage, last: StageResult) -> bool:
        """Whether the model hears what the tools say that it asked for: all of them have something to say."""
        if not last.tool_calls or last.round + 1 >= MOST_ROUNDS:
            return False
        return all(asked.name in stage.tool_results for asked in last.tool_calls)

    def _variables(self, call: Call, results: Sequence[StageResult]) -> dict[str, object]:
        values = variables(self._spec, self._row, results, call.stage_index)
        if self._stages[call.stage_index].for_each:
            values["item"] = self.items(call.stage_index, results)[call.iteration]
            values["item_index"] = call.iteration
        return values

    def items(self, index: int, results: Sequence[StageResult]) -> Sequence[Json]:
        """Of a stage's `for_each`. Raises TemplateError where it gives no list."""
        source = self._stages[index].for_each
        items = self._renderer.value(source, variables(self._spec, self._row, results, index))
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise TemplateError(f"'for_each' must give a list, and gave {_kind(items)}")
        if not 0 < len(items) <= MOST_ITEMS:
            raise TemplateError(f"'for_each' must give 1 to {MOST_ITEMS} items, and gave {len(items)}")
        return items


def _unanswered(last: StageResult) -> Sequence[Message]:
    """Providers refuse a conversation that goes on after calls of tools without their results."""
    told = "Error: there is no result, as this tool was not run."
    return [Message("tool", told, tool_call_id=asked.id, name=asked.name) for asked in last.tool_calls]


def _place(result: StageResult) -> tuple[int, int]:
    return result.stage_index, result.iteration


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    return "text" if isinstance(value, str) else "a mapping" if isinstance(value, dict) else repr(value)


def output_of(stages: Sequence[Stage], results: Sequence[StageResult], *, completed: bool) -> str | None:
    """The run's output, once its last stage has one."""
    if not results or results[-1].stage_index + 1 != len(stages) or results[-1].error is not None:
        return None
    return results[-1].output if completed or stages[-1].takes_one_call else None
