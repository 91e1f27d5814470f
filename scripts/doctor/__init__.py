"""What can be known before the first download: checks, and what they stop."""
