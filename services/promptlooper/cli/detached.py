"""`up -d`: a supervisor that is a process of its own, and says once whether the stack is healthy.

It gets its options on stdin, because a database URL may hold a password, which the arguments of a process show to
everyone. It answers on a pipe with one JSON document: empty when everything is healthy, else the error.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import orjson

from promptlooper.cli.outcome import FAILED, OK, Refused, code_of
from promptlooper.cli.stack import Options, planned_parts
from promptlooper.cli.stack_log import SUPERVISOR, printer
from promptlooper.cli.stack_state import StackState, read_state
from promptlooper.cli.supervisor import run_stack
from promptlooper.errors import DomainError

_KEPT_BYTES = 32 * 1024 * 1024


def start_detached(options: Options) -> StackState:
    """Returns when every part is healthy. Raises Refused where one is not; then nothing is left running."""
    log = _log_file(options.data)
    reading, writing = os.pipe()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "promptlooper.cli.detached", str(writing), log],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[writing],
        )
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        try:
            assert process.stdin is not None
            process.stdin.write(_written(options))
            process.stdin.close()
            answer = answers.read()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if not answer:
        raise Refused(f"The supervisor ended with exit code {process.wait()}; its log is {str(log)!r}.")
    error = orjson.loads(answer)
    if error:
        process.wait()
        raise Refused(error["message"], reason=error["reason"], code=error["code"])
    state = read_state(options.data)
    if state is None:
        raise Refused(f"The stack is being stopped by someone else; its log is {str(log)!r}.")
    # It lives on without us: nobody here will ask for its exit code.
    process.returncode = OK
    return state


def main() -> NoReturn:
    answering, log = os.fdopen(int(sys.argv[1]), "wb"), Path(sys.argv[2])
    options = _read(sys.stdin.buffer.read())
    parts = planned_parts(options.replicas, options.port_base)
    emit = printer(parts, sys.stdout, colour=False)

    def answer(document: dict[str, object]) -> None:
        try:
            answering.write(orjson.dumps(document))
            answering.close()
        except BrokenPipeError:
            # Whoever asked for the stack was ended before it stood.
            os.kill(os.getpid(), signal.SIGTERM)

    def on_ready(_: StackState) -> None:
        emit(SUPERVISOR, "everything is healthy")
        answer({})

    try:
        stopped_by = run_stack(options, parts, log=log, emit=emit, on_ready=on_ready)
    except DomainError as error:
        for line in error.message.splitlines():
            emit(SUPERVISOR, line)
        answer({"reason": error.reason, "message": error.message, "code": code_of(error)})
        sys.exit(FAILED)
    emit(SUPERVISOR, f"stopped by {stopped_by.name}")
    if not answering.closed:
        message = f"{stopped_by.name} stopped the stack before it was healthy."
        answer({"reason": "INTERRUPTED", "message": message, "code": FAILED})
    sys.exit(OK)


def _written(options: Options) -> bytes:
    return orjson.dumps(asdict(options), default=str)


def _read(text: bytes) -> Options:
    document = orjson.loads(text)
    providers = document.pop("providers")
    data = Path(document.pop("data"))
    return Options(data=data, providers=Path(providers) if providers else None, **document)


def _log_file(data: Path) -> Path:
    """The file that is written on; a long one is put aside first."""
    log = data / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _KEPT_BYTES:
        log.replace(log.with_name("up.log.1"))
    return log


if __name__ == "__main__":
    main()
