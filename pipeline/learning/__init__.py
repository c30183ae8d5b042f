"""Labelled media -> instruction records -> a tuned model."""
