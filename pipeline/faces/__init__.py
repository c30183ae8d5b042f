"""Frames -> detections -> tracks -> windows of aligned crops."""
