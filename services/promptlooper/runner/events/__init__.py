"""Events: to watchers in this process, and to NATS."""
