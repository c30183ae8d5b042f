"""What a video holds: its frames, its sound and what is said, on one clock."""
