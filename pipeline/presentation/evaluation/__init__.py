"""The page of an evaluation: how sure, how right and how well a model may abstain."""
