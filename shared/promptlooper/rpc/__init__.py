"""gRPC servers and channels, errors as status codes, deadlines, a service's process."""

import os

# grpc's core writes lines of its own to stderr, such as each GOAWAY, amid progress and logs, unless told at its start.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
