"""Certified rankings by one system in one roster setting."""
