"""What people saw, and how well models agree with it."""
