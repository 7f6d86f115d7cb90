"""Helpers for files, paths, processes and arguments."""
