"""Stateful classes that own a resource for Ray: a decoding child process, a GPU."""
