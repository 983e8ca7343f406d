"""The interpretable trajectory reward model."""
