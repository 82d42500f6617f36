"""The command line, one small module a group of commands."""
