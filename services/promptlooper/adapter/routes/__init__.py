"""Which address and key a question goes to, and where it goes on after a failure."""
