"""docs/security.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from promptlooper.adapter.settings import AdapterSettings
from promptlooper.cache.settings import CacheSettings
from promptlooper.rpc.scopes import SCOPES
from promptlooper.runner.settings import RunnerSettings
from promptlooper.scorer.settings import ScorerSettings
from promptlooper.security_settings import SecuritySettings

DOCS = (Path(__file__).parents[3] / "docs" / "security.md").read_text()
USERS = {"SERVER_CA_FILE", "SERVER_CERT_FILE", "SERVER_KEY_FILE", "SERVER_NAME", "SERVER_TOKEN_FILE"}


def rows(heading: str) -> list[list[str]]:
    section = DOCS.split(f"{heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]


def test_table_of_scopes_is_that_of_the_code() -> None:
    written = {
        (service, method, None if scope == "none" else scope.strip("`"))
        for service, scope, methods in rows("### Scopes")[2:]
        for method in methods.split(", ")
    }
    coded = {
        (path.split("/")[1].rpartition(".")[2].removesuffix("Service"), path.split("/")[2], scope)
        for path, scope in SCOPES.items()
    }
    assert written == coded


def test_every_setting_is_described_and_every_one_described_is_there() -> None:
    classes = (RunnerSettings, AdapterSettings, CacheSettings, ScorerSettings)
    there = {name.upper() for settings in classes for name in settings.model_fields} | USERS
    described = {name for row in rows("## Settings") for name in re.findall(r"`([A-Z_]+)`", row[0])}
    assert described <= there
    assert {name.upper() for name in SecuritySettings.model_fields} <= described
    backing = re.compile(r"(NATS|REDIS|DATABASE)_.*(FILE|FIRST)")
    assert {name for name in there if backing.fullmatch(name)} <= described
    assert described >= USERS
