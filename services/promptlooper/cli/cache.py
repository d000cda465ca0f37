"""`promptlooper cache`: what is remembered, and forgetting it."""

from __future__ import annotations

import click

from promptlooper.caching import CacheStats
from promptlooper.cli.documents import print_document
from promptlooper.cli.questions import confirm
from promptlooper.cli.session import Session, json_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.wording import count


@click.group()
def cache() -> None:
    """Look at remembered answers, or clear them."""


@cache.command()
@json_option
@session_options
def stats(session: Session, as_json: bool) -> None:
    """Say how many answers are remembered and, with --server, how often they helped since the Cache started."""
    now = run_interruptibly(_stats(session))
    counted = session.target.server is not None  # an embedded cache counts in this process, which has asked nothing
    if as_json:
        print_document(
            {
                "backend": now.backend,
                "entries": now.entries,
                "bytes": now.bytes,
                "hits": now.hits if counted else None,
                "misses": now.misses if counted else None,
            }
        )
        return
    click.echo(f"{count(now.entries, 'answer')} in a {now.backend} store, {now.bytes / 1e6:,.1f} MB")
    if counted:
        asked = now.hits + now.misses
        rate = f" ({now.hits / asked:.0%})" if asked else ""
        misses = count(now.misses, "miss", "misses")
        click.echo(f"{count(now.hits, 'hit')}{rate}, {misses} since the Cache started")


@cache.command()
@click.option("--project", metavar="NAME", help="Only answers of this project, in its namespace `default`.")
@click.option("--namespace", metavar="NAME", help="Only answers of this namespace.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@session_options
def clear(session: Session, project: str | None, namespace: str | None, yes: bool, as_json: bool) -> None:
    """Forget answers: all, or those of one project and namespace. Results of experiments stay."""
    scope = f"{project or 'default'}.{namespace or 'default'}" if project or namespace else ""
    which = f"the remembered answers of {scope}" if scope else "all remembered answers"
    server = session.target.server
    confirm(f"Delete {which}{f' of the Runner at {server}' if server else ''}?", yes)
    deleted = run_interruptibly(_clear(session, scope))
    if as_json:
        print_document({"deleted": deleted})
    else:
        click.echo(f"Deleted {count(deleted, 'remembered answer')}.", err=True)


async def _stats(session: Session) -> CacheStats:
    async with session.open() as experiments:
        return await experiments.cache_stats()


async def _clear(session: Session, scope: str) -> int:
    async with session.open() as experiments:
        return await experiments.purge_cache(scope)
