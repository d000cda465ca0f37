"""The services as their Protocols, over gRPC: what the engine and the command line use when there are servers."""
