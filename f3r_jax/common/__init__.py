"""Helpers of all commands: errors, the command line, progress, files, versions, the compilation cache."""
