"""The user's samples: what a model is fed, and reading them from any of their forms."""
