"""The server of `emolake view`."""
