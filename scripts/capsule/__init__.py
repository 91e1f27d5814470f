"""One file, or parts of one, with all that an offline machine needs to build a recipe; and the way back for objects."""
