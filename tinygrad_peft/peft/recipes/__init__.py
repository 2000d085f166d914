"""Recipes: targets found in a model, steps applied to it, and the record of the changes."""
