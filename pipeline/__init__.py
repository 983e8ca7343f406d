"""What every stage of certrank shares: the domain's core and the plumbing, one noun per module."""

import os

# Before numpy is imported. One BLAS thread: sums then run in the same order on any number of cores, so results have
# the same bytes; and on a busy machine the spinning of a second thread costs far more than it brings (measured: 16x).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Before torch is imported. Threads that wait in their sleep: on a busy machine OpenMP's spinning at every barrier made
# a training step cost 6 processor seconds instead of 0.65. Results do not change.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
