"""`promptlooper cache`: what is remembered, and forgetting it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from promptlooper.caching import CacheStats
from promptlooper.cli.documents import print_document
from promptlooper.cli.questions import confirm
from promptlooper.cli.session import Session, json_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.wording import count, local_time, milliseconds, spent
from promptlooper.rows import iso, usd


@click.group()
def cache() -> None:
    """Look at remembered answers, or clear them."""


@cache.command()
@json_option
@session_options
def stats(session: Session, as_json: bool) -> None:
    """Say how many answers are remembered, how often they helped, and what they saved."""
    now = run_interruptibly(_stats(session))
    if as_json:
        print_document(_document(now))
        return
    if now.entries is None or now.bytes is None:
        click.echo(f"The {now.backend} store is away: every question is asked anew. What this Cache did:")
    else:
        click.echo(f"{count(now.entries, 'answer')} in a {now.backend} store, {now.bytes / 1e6:,.1f} MB")
    if now.breaker in _BREAKER:
        click.echo(_BREAKER[now.breaker])
    asked = now.hits + now.misses
    rate = f" ({now.hits / asked:.0%})" if asked else ""
    since = f" since {local_time(_moment(now))}" if now.counted_since else ""
    click.echo(f"{count(now.hits, 'hit')}{rate}, {count(now.misses, 'miss', 'misses')}, {now.stored:,} stored{since}")
    if now.hits:
        saved = now.saved
        click.echo(
            f"saved {spent(saved.cost_nanousd or 0, now.saved_unpriced)}, {saved.tokens_in:,} tokens in and "
            f"{saved.tokens_out:,} out, {milliseconds(saved.latency_ms)} of the models' time"
        )
    if now.errors or now.unreadable:
        click.echo(f"{count(now.errors, 'call')} failed, {count(now.unreadable, 'stored answer')} could not be read")


_BREAKER = {
    "open": "The breaker is open: the store did not answer, and is not asked for a moment.",
    "half_open": "The breaker is half open: one call tries whether the store answers again.",
}


@cache.command()
@click.option("--project", metavar="NAME", help="Only answers of this project.")
@click.option("--namespace", metavar="NAME", help="Only answers of this namespace.")
@click.option("-m", "--model", metavar="MODEL", help="Only answers that this model was asked for: PROVIDER/NAME.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@session_options
def clear(
    session: Session, project: str | None, namespace: str | None, model: str | None, yes: bool, as_json: bool
) -> None:
    """Forget answers: all, or those that every option given is true of. Results of experiments stay."""
    scope = f"{project or '*'}.{namespace or '*'}" if project or namespace or model else ""
    said = {"project": project, "namespace": namespace, "model": model}
    chosen = " and ".join(f"{name} {value}" for name, value in said.items() if value)
    which = f"the remembered answers of {chosen}" if chosen else "all remembered answers"
    server = session.target.server
    confirm(f"Delete {which}{f' of the Runner at {server}' if server else ''}?", yes)
    deleted = run_interruptibly(_clear(session, scope, model or ""))
    if as_json:
        print_document({"deleted": deleted})
    elif model:
        click.echo(f"Forgot {which}. Their room is given back in time.", err=True)
    else:
        click.echo(f"Deleted {count(deleted, 'remembered answer')}.", err=True)


def _document(now: CacheStats) -> dict[str, Any]:
    return {
        "backend": now.backend,
        "entries": now.entries,
        "bytes": now.bytes,
        "hits": now.hits,
        "misses": now.misses,
        "busy": now.busy,
        "stored": now.stored,
        "stored_bytes": now.stored_bytes,
        "errors": now.errors,
        "unreadable": now.unreadable,
        "saved_usd": usd(now.saved.cost_nanousd),
        "saved_unpriced": now.saved_unpriced,
        "saved_tokens_in": now.saved.tokens_in,
        "saved_tokens_out": now.saved.tokens_out,
        "saved_ms": now.saved.latency_ms,
        "breaker": now.breaker,
        "counted_since": iso(_moment(now)) if now.counted_since else None,
    }


def _moment(now: CacheStats) -> datetime:
    return datetime.fromtimestamp(now.counted_since, UTC)


async def _stats(session: Session) -> CacheStats:
    async with session.open() as experiments:
        return await experiments.cache_stats()


async def _clear(session: Session, scope: str, model: str) -> int:
    async with session.open() as experiments:
        return await experiments.purge_cache(scope, model)
