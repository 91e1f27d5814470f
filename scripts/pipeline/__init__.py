"""The whole job: from a recipe to a wheel in the wheelhouse."""
