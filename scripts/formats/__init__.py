"""Files that are read without trust: wheels, ELF files, fat binaries, SBOMs."""
