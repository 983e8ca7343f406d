"""`extract.model: encoder`: a fine-tuned transformer with joint heads for events, mentions, roles and relations."""
