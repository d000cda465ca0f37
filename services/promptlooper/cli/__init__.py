"""The command line."""

import promptlooper.rpc  # noqa: F401  It tells grpc to be quiet, which works only before grpc is imported.
