"""`emolake view`: an output to be looked at and corrected, in the browser."""

QUEUES = ("random", "uncertain", "disagree", "rare")
PER = ("corpus", "emotion", "date")
"""What a queue may take in turn."""
