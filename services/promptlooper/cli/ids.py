"""The experiment that a user means: a whole id, a unique beginning of one, or `latest`."""

from __future__ import annotations

from promptlooper.cli.outcome import USAGE, Refused
from promptlooper.errors import ExperimentNotFound
from promptlooper.experiment import Experiment
from promptlooper.experiments import ExperimentFilter, Experiments

LATEST = "latest"
DEFAULT_PROJECT = "default"
_SHOWN = 5


async def meant(experiments: Experiments, text: str, project: str | None = None) -> Experiment:
    """Ids are unique over all projects, so `project` matters to `latest` (default: the project `default`) and otherwise
    only narrows the search. Raises ExperimentNotFound, or Refused where several ids begin so."""
    if text == LATEST:
        return await _latest(experiments, project)
    if not text:
        raise Refused(
            "An empty ID names no experiment: give an ID, or `latest`.", reason="INVALID_ARGUMENT", code=USAGE
        )
    try:
        found = await experiments.get(text)
    except ExperimentNotFound:
        return await _by_prefix(experiments, text, project)
    if project is not None and found.project != project:
        raise _unknown(text, project)
    return found


async def _latest(experiments: Experiments, project: str | None) -> Experiment:
    wanted = project or DEFAULT_PROJECT
    page = await experiments.list_experiments(ExperimentFilter(project=wanted), page_size=1)
    if page.experiments:
        return page.experiments[0]
    elsewhere = (await experiments.list_experiments(ExperimentFilter(), page_size=1)).experiments
    hint = (
        f"The newest of all is in project {elsewhere[0].project!r}: add `--project {elsewhere[0].project}`."
        if elsewhere
        else "Start one with `promptlooper run`."
    )
    raise ExperimentNotFound(f"Project {wanted!r} has no experiment yet. {hint}", experiment_id=LATEST)


async def _by_prefix(experiments: Experiments, text: str, project: str | None) -> Experiment:
    where = ExperimentFilter(project=project or "", experiment_id_prefix=text)
    found = (await experiments.list_experiments(where, page_size=_SHOWN + 1)).experiments
    if not found:
        raise _unknown(text, project)
    if len(found) > 1:
        names = ", ".join(e.experiment_id for e in found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        raise Refused(
            f"Several experiments begin with {text!r}: {names}. Give more of the ID.",
            reason="INVALID_ARGUMENT",
            code=USAGE,
        )
    return found[0]


def _unknown(text: str, project: str | None) -> ExperimentNotFound:
    where = "" if project is None else f" in project {project!r}"
    return ExperimentNotFound(
        f"There is no experiment {text!r}{where}. `promptlooper list` shows those that there are.", experiment_id=text
    )
