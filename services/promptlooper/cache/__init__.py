"""The Cache: remembers answers, and makes sure one question is asked once."""
