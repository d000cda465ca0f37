"""Experiments: read from files, written out in their normal form, checked, and expanded into runs."""

from promptlooper.runner.spec.check_services import check
from promptlooper.runner.spec.check_spec import problems_of
from promptlooper.runner.spec.expand import (
    Cell,
    Shape,
    Variant,
    cell,
    run_index,
    shape,
    stage_model,
    stage_params,
    total_calls,
    variants,
)
from promptlooper.runner.spec.normal import (
    body_sha256,
    completed,
    row_from_json,
    row_to_json,
    spec_from_json,
    spec_to_json,
)
from promptlooper.runner.spec.overrides import Overrides
from promptlooper.runner.spec.problems import FilePosition, FileProblem, InvalidFile
from promptlooper.runner.spec.reading import ReadExperiment, read_experiment
from promptlooper.runner.spec.scorers import SCORER_TYPES
from promptlooper.runner.spec.values import json_pair, text_pair

__all__ = [
    "SCORER_TYPES",
    "Cell",
    "FilePosition",
    "FileProblem",
    "InvalidFile",
    "Overrides",
    "ReadExperiment",
    "Shape",
    "Variant",
    "body_sha256",
    "cell",
    "check",
    "completed",
    "json_pair",
    "problems_of",
    "read_experiment",
    "row_from_json",
    "row_to_json",
    "run_index",
    "shape",
    "spec_from_json",
    "spec_to_json",
    "stage_model",
    "stage_params",
    "text_pair",
    "total_calls",
    "variants",
]
