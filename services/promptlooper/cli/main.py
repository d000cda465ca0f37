"""The command `promptlooper`. Commands are imported when they are used, so that `--help` is quick."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from promptlooper.cli.later import LATER, refusal

# name → (module, attribute, one line for --help)
COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "run": ("promptlooper.cli.run", "run", "Run an experiment."),
    "validate": ("promptlooper.cli.validate", "validate", "Check an experiment; run nothing."),
    "render": ("promptlooper.cli.render", "render", "Print the exact messages of a run; call nothing."),
    "init": ("promptlooper.cli.init", "init", "Write a small experiment that works as it is."),
    "list": ("promptlooper.cli.list", "list_command", "List experiments, newest first."),
    "show": ("promptlooper.cli.show", "show", "Show an experiment's results."),
    "watch": ("promptlooper.cli.watch", "watch", "Follow an experiment to its end."),
    "events": ("promptlooper.cli.events", "events", "Print what happened to an experiment."),
    "pause": ("promptlooper.cli.pause", "pause", "Start nothing new of an experiment until it is resumed."),
    "resume": ("promptlooper.cli.resume", "resume", "Go on with an experiment, and follow it to its end."),
    "retry": ("promptlooper.cli.retry", "retry", "Run the failed runs of an experiment again."),
    "update": ("promptlooper.cli.update", "update", "Change limits of an experiment, also while it runs."),
    "cancel": ("promptlooper.cli.cancel", "cancel", "Stop an experiment."),
    "delete": ("promptlooper.cli.delete", "delete", "Delete an experiment and its results."),
    "export": ("promptlooper.cli.export", "export", "Write an experiment's results as rows."),
    "models": ("promptlooper.cli.models", "models", "List the models that can be asked."),
    "scorers": ("promptlooper.cli.scorers", "scorers", "List the scorers."),
    "cache": ("promptlooper.cli.cache", "cache", "Look at remembered answers, or clear them."),
    "up": ("promptlooper.cli.up", "up", "Start the whole stack on this machine."),
    "down": ("promptlooper.cli.down", "down", "Stop the stack."),
    "status": ("promptlooper.cli.status", "status", "Say which parts of the stack are healthy."),
    "serve": ("promptlooper.cli.serve", "serve", "Run one service in the foreground."),
    "token": ("promptlooper.cli.token", "token", "Make API keys for those who call a server."),
    "migrate": ("promptlooper.cli.migrate", "migrate", "Bring the database up to date."),
}


class _ReaderGone(Exception):
    """The reader of our output has left."""


class CommandGroup(click.Group):
    """Imports a command when it is asked for, and turns every failure into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, attribute, _ = COMMANDS[cmd_name]
            command = getattr(importlib.import_module(module), attribute)
            assert isinstance(command, click.Command)
            return command
        return refusal(cmd_name) if cmd_name in LATER else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error  # click itself would make exit code 1 of it

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        args = list(sys.argv[1:] if args is None else args)
        prog_name = prog_name or "promptlooper"
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        as_json = "--json" in args
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except _ReaderGone:
            _leave_quietly(READER_GONE if args[:1] in _WITH_VERDICT else 0)
        except Exception as error:
            from promptlooper.cli.failure import reported

            sys.exit(reported(error, as_json))
        sys.exit(code if isinstance(code, int) else 0)


_WITH_VERDICT = (["run"], ["resume"], ["retry"], ["watch"])
READER_GONE = 141  # what a shell says of a process that SIGPIPE ended


def _leave_quietly(code: int) -> NoReturn:
    """The reader of our output has gone, as in `export … | head`. It has what it wanted; only where the exit code is a
    verdict that nobody has got yet, it says so."""
    drop_output()
    sys.exit(code)


def drop_output() -> None:
    """What is still to be printed goes nowhere, or leaving would try to write it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="promptlooper", message="%(prog)s %(version)s")
def main() -> None:
    """Run prompt experiments: many prompts, models and inputs, scored and compared.

    An experiment is a YAML file. `promptlooper init` writes one, `promptlooper run` runs it.
    """


if __name__ == "__main__":
    main()
