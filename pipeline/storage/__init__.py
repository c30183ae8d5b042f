"""One door to files and objects, what goes through it, and tables too long to hold."""
