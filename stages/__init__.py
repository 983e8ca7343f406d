"""One package per stage of dvc.yaml; a stage imports from `pipeline` and from stages upstream of it only."""

import pipeline as pipeline  # first of all, because it settles how numerical libraries run
