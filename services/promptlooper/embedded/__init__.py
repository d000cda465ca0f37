"""The embedded composition: a Runner in this process, for the command line and the Python client."""
