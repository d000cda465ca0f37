"""The Scorer: computes scores from outputs."""
