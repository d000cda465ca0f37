"""Where the Cache keeps its bytes: Redis, or a local file."""
