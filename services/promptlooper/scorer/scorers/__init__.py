"""The scorer types, one small module per family."""
