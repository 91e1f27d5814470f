"""A private index: what lies in it, how it gets there, how it is read and verified."""
