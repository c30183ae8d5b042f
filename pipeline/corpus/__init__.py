"""What there is to do: INPUT -> videos -> what the ledger leaves -> segments; and what it would cost."""
