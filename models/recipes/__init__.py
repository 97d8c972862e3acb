"""Recipes that train the networks shipped in ``models/``."""
