"""Numbers and pictures of what happens inside a model."""
