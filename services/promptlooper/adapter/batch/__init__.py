"""Batches: the questions that a provider answers within hours, at a lower price."""
