"""Files that were sent for experiments: pieces that come in any order and more than once, whole when all are there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from promptlooper.errors import InvalidArgument, TooLarge
from promptlooper.runner.store.models import upload_pieces, uploads
from promptlooper.sources import PIECE, FilePiece, FileReference, Uploaded

KEPT_US = 7 * 24 * 3600 * 1_000_000  # after the last use


class OtherContent(InvalidArgument):
    """The pieces do not make the file that they were said to be of."""


def add_piece(connection: sa.Connection, piece: FilePiece, now_us: int, limit: int) -> Uploaded | OtherContent:
    """Keeps the piece; with the last one the file is whole. Returns, not raises, OtherContent, as the pieces are
    dropped then. Raises InvalidArgument where the size is another than that of earlier pieces, TooLarge where a new
    file does not fit into the `limit` of bytes."""
    row = {"sha256": piece.sha256, "size": piece.size, "complete": False, "used_us": now_us}
    of_it = uploads.c.sha256 == piece.sha256
    if connection.execute(sa.select(uploads.c.size).where(of_it)).scalar() is None:
        _check_room(connection, piece.size, limit)
        # Another may have sent the first piece at the same time; the row is the lock that the pieces of a file share.
        with suppress(IntegrityError), connection.begin_nested():
            connection.execute(sa.insert(uploads), row)
    file = connection.execute(sa.select(uploads).where(of_it).with_for_update()).one()
    if file.size != piece.size:
        raise InvalidArgument(
            f"the file was said to have {file.size:,} bytes, and now {piece.size:,}: one of the two is wrong",
            field="size",
        )
    connection.execute(sa.update(uploads).where(of_it).values(used_us=now_us))
    if file.complete:
        return Uploaded(piece.size, True)
    with suppress(IntegrityError), connection.begin_nested():
        part = {"sha256": piece.sha256, "piece": piece.offset // PIECE, "data": piece.data}
        connection.execute(sa.insert(upload_pieces), part)
    length = sa.func.octet_length if connection.dialect.name == "postgresql" else sa.func.length
    pieces, received = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(length(upload_pieces.c.data)), 0)).where(
            upload_pieces.c.sha256 == piece.sha256
        )
    ).one()
    if pieces < max(1, -(-piece.size // PIECE)):
        return Uploaded(int(received), False)
    digest = hashlib.sha256()
    for data in _pieces(connection, piece.sha256):
        digest.update(data)
    if digest.hexdigest() != piece.sha256:
        _drop(connection, of_it)
        return OtherContent(
            f"the {piece.size:,} bytes that were sent have the SHA-256 {digest.hexdigest()}: send the file again",
            field="sha256",
        )
    connection.execute(sa.update(uploads).where(of_it).values(complete=True))
    return Uploaded(piece.size, True)


def _check_room(connection: sa.Connection, size: int, limit: int) -> None:
    """A file takes its room with its first piece. Files that begin at the same moment may go beyond the limit
    together, by no more than they have."""
    kept = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(uploads.c.size), 0))).scalar_one()
    if kept + size > limit:
        raise TooLarge(
            f"there is no room for {size:,} bytes: uploaded files have {kept:,} of the {limit:,} that"
            f" this server keeps; those that nobody uses go after {KEPT_US // 86_400_000_000} days, or ask for a larger"
            " PROMPTLOOPER_UPLOAD_LIMIT"
        )


def content(connection: sa.Connection, file: FileReference) -> bytes | None:
    """What the file holds; None where it is not here as a whole."""
    query = sa.select(uploads.c.size).where(uploads.c.sha256 == file.sha256, uploads.c.complete)
    if connection.execute(query).scalar() != file.size:
        return None
    return b"".join(_pieces(connection, file.sha256))


def used(connection: sa.Connection, sha256s: list[str], now_us: int) -> None:
    """They are kept for so much longer."""
    connection.execute(sa.update(uploads).where(uploads.c.sha256.in_(sha256s)).values(used_us=now_us))


def forget_old(connection: sa.Connection, now_us: int) -> None:
    _drop(connection, uploads.c.used_us < now_us - KEPT_US)


def _drop(connection: sa.Connection, where: sa.ColumnElement[bool]) -> None:
    of_them = sa.select(uploads.c.sha256).where(where)
    connection.execute(sa.delete(upload_pieces).where(upload_pieces.c.sha256.in_(of_them)))
    connection.execute(sa.delete(uploads).where(where))


def _pieces(connection: sa.Connection, sha256: str) -> Iterator[bytes]:
    of_it = sa.select(upload_pieces.c.piece).where(upload_pieces.c.sha256 == sha256)
    for number in sorted(connection.execute(of_it).scalars()):
        query = sa.select(upload_pieces.c.data).where(upload_pieces.c.sha256 == sha256, upload_pieces.c.piece == number)
        yield bytes(connection.execute(query).scalar_one())
