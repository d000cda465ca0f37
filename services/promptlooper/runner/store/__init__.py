"""The SQL database: the truth about experiments, runs and events."""
