"""The built-in cases, and the command line."""
