"""The Runner: stores experiments, runs them, and tells how they go."""
