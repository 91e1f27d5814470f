"""A recipe's sources, fetched by digest or commit, and patched."""
