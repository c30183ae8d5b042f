"""`emolake bench`: each entry measured against a peer in the same run."""
