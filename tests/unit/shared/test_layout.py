"""What keeps the tree together."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("half", ["services", "shared"])
def test_the_two_halves_of_the_namespace_have_no_init_file(half: str) -> None:
    """One would hide the other half."""
    assert not (ROOT / half / "promptlooper" / "__init__.py").exists()


@pytest.mark.parametrize("module", ["errors", "digest", "completion", "caching", "scoring", "experiment", "run"])
def test_shared_types_know_no_transport(module: str) -> None:
    tree = ast.parse((ROOT / "shared/promptlooper" / f"{module}.py").read_text())
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in imported if name.split(".")[0] in ("grpc", "google") or ".v1" in name]
