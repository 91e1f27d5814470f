"""What runs where wheelsmith is not installed yet: standard library only, and nothing of ours is imported."""
