from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from promptlooper.cli.main import main
from promptlooper.errors import InvalidArgument
from promptlooper.rpc.api_keys import PREFIX, read_keys
from promptlooper.rpc.scopes import Scope


def token_new(*words: str) -> Result:
    return CliRunner().invoke(main, ["token", "new", *words], catch_exceptions=False, standalone_mode=False)


def test_key_is_printed_alone_and_its_hash_appended(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    keys = [
        token_new("--name", name, "--scopes", scopes, "--file", str(path)).stdout.strip()
        for name, scopes in (("ci", "run"), ("ops", "admin,read"))
    ]
    known = read_keys(path.read_bytes())
    ci, ops = (known.caller(key) for key in keys)
    assert ci is not None
    assert ops is not None
    assert (ci.name, ci.scopes, ops.scopes) == ("ci", {Scope.RUN}, {Scope.ADMIN, Scope.READ})
    assert not any(key in path.read_text() for key in keys)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["keys.txt"]


def test_without_a_file_the_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPTLOOPER_API_KEYS_FILE", raising=False)
    made = token_new("--name", "ci", "--scopes", "read", "--expires", "90d")
    assert made.stdout.startswith(PREFIX)
    line = made.stderr.splitlines()[-1]
    found = read_keys(line.encode()).caller(made.stdout.strip())
    assert found is not None
    assert found.until < float("inf")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--name", "ci", "--scopes", "all"), "--scopes: 'all' is no scope"),
        (("--name", "c i", "--scopes", "read"), "'c i' is no name"),
        (("--name", "ci", "--scopes", "read", "--expires", "soon"), "write 90d or 12h"),
        (("--name", "there", "--scopes", "read"), "has a key named 'there' already"),
    ],
)
def test_what_can_not_be_made_changes_nothing(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    token_new("--name", "there", "--scopes", "read", "--file", str(path))
    before = path.read_text()
    with pytest.raises(InvalidArgument) as caught:
        token_new(*words, "--file", str(path))
    assert said in caught.value.message
    assert path.read_text() == before


def test_what_is_no_file_of_keys_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match=r"keys\.txt' is no file of keys"):
        token_new("--name", "ci", "--scopes", "read", "--file", str(path))


def test_nothing_is_written_through_a_link_that_somebody_left_beside_the_file(tmp_path: Path) -> None:
    path, other = tmp_path / "keys.txt", tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "keys.txt.new").symlink_to(other)
    token_new("--name", "ci", "--scopes", "read", "--file", str(path))
    assert other.read_text() == "mine"
