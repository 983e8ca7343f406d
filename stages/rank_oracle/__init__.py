"""The oracle: the cap that an extraction allows."""
