"""Stage `ingest`: see `stages/ingest/__main__.py`."""
