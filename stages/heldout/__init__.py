"""The stage `heldout`: a second extractor, fitted on texts without names, that the audit alone may ask."""
