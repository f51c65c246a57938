"""Training: the data, the recipes, and one loop for every network."""
