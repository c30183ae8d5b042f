"""What people and schedulers start: the command line and the jobs behind it."""
