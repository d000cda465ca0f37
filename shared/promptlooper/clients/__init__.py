"""The services as their Protocols, over gRPC: what the engine and the command line use when there are servers."""

import promptlooper.rpc  # noqa: F401  It tells grpc to be quiet, which works only before grpc is imported.
