"""What every stage of certrank shares: the domain's core and the plumbing, one noun per module."""

import os

# Before numpy is imported. One BLAS thread: sums then run in the same order on any number of cores, so results have
# the same bytes; and on a busy machine the spinning of a second thread costs far more than it brings (measured: 16x).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
