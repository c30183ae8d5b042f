"""`emolake view`: an output to be looked at and corrected, in the browser."""
