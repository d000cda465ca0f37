"""The Adapter: one face for every LLM provider."""
