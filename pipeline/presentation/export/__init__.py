"""One annotated video for people: an overlay to watch, files for annotation tools."""
