from __future__ import annotations

from pathlib import Path

import pytest
from tls_lab import put

from promptlooper.errors import InvalidArgument
from promptlooper.reloading import Reloaded, secret


def number(data: list[bytes]) -> int:
    try:
        return int(data[0])
    except ValueError:
        raise InvalidArgument(f"{data[0]!r} is no number") from None


def test_changed_file_is_read_again_at_the_next_look(tmp_path: Path) -> None:
    path, now = tmp_path / "number", 0.0
    path.write_bytes(b"1")
    reads: list[bytes] = []

    def read(data: list[bytes]) -> int:
        reads.extend(data)
        return number(data)

    value = Reloaded("the number", [path], read, look_every=1.0, monotonic=lambda: now)
    put(path, b"2")
    now = 0.9
    assert value.current() == 1
    now = 1.0
    assert value.current() == 2
    now = 5.0
    assert value.current() == 2
    assert reads == [b"1", b"2"]


def test_what_can_not_be_taken_changes_nothing_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "number"
    path.write_bytes(b"1")
    value = Reloaded("the number", [path], number, look_every=0)
    put(path, b"two")
    assert [value.current() for _ in range(3)] == [1, 1, 1]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "the number: b'two' is no number" in caplog.text
    path.unlink()
    assert value.current() == 1
    assert "can't be read: No such file" in caplog.text
    path.write_bytes(b"3")
    assert value.current() == 3


def test_file_that_can_not_be_taken_at_first_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"the number: .*/none' can't be read: No such file"):
        Reloaded("the number", [tmp_path / "none"], number)


def test_link_that_moves_to_a_new_folder_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes rotates secrets: all files of a folder at once."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "number").write_text({"one": "1", "two": "2"}[name])
    (tmp_path / "data").symlink_to("one")
    value = Reloaded("the number", [tmp_path / "data" / "number"], number, look_every=0)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(tmp_path / "data")
    assert value.current() == 2


@pytest.mark.parametrize("text", ["", " \n", "two\nlines", "not ascii é"])
def test_file_of_a_secret_holds_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text("word\n")
    assert secret(path, "the token") == "word"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match="one line of ASCII text") as caught:
        secret(path, "the token")
    assert not text.strip() or text.strip() not in caught.value.message
