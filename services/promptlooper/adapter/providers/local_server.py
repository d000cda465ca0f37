"""llama.cpp's own server in a process of its own, so that a native crash takes nothing else down.

Run as a file: prints its address on stdout, and ends with whoever started it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--alias", required=True)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--context", type=int, default=4096, help="tokens, shared by the parallel slots")
    parser.add_argument("--parent", type=int, required=True, help="end when this process does")
    options = parser.parse_args()

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != options.parent:
        sys.exit("the process that started this one is gone")

    # llama.cpp may write to stdout, which carries our one line.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = options.context
    params.n_parallel = options.parallel
    # More threads than free cores spin and collapse: 132 to 11 tokens/s beside two busy processes.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.ui = False
    params.offline = True
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, file=out, flush=True)
    # Where there is no PR_SET_PDEATHSIG, the end of the pipe tells that the parent is gone.
    sys.stdin.buffer.read()
    os._exit(0)  # llama.cpp's threads are not waited for


if __name__ == "__main__":
    main()
