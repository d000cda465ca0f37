"""llama.cpp's own server, started for embeddings: prints its address, and ends with its stdin."""

from __future__ import annotations

import os
import sys


def main(gguf: str) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp may write to stdout

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 1024
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.ui = False
    params.offline = True
    params.verbosity = 0
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    print(server.listening_address, file=out, flush=True)
    sys.stdin.buffer.read()
    os._exit(0)  # llama.cpp's threads are not waited for


if __name__ == "__main__":
    main(sys.argv[1])
