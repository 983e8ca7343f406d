"""A miniature of the real pipeline, killed at named points and at random ones."""
