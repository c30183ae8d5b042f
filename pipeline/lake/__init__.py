"""The lake: partitioned Parquet with a ledger that is the commit.

A write puts `annotations`, then `tracks`, then `videos` (the ledger) under one commit_id; the ledger
file, written last and whole, is the commit. See docs/reliability.md.
"""
