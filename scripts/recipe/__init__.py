"""What to build: recipes, their files and what their units cost."""
