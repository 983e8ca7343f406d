"""The supervised policy: the base policy taught to rank and to cite on the corpus' own train windows."""
