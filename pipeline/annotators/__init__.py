"""Annotators: windows of face crops -> annotations. One file per system."""
