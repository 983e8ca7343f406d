"""Certified rankings by a language model in one roster setting."""
