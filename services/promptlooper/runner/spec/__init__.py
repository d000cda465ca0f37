"""Experiments: read from files, written out in their normal form, checked, and expanded into runs."""
