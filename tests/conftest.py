"""Where there is no CUDA device, or no compiler for it, its kernels run in numba's simulator."""

from importlib.util import find_spec

import numba
import torch

if not torch.cuda.is_available() or find_spec("numba_cuda") is None:
    numba.config.ENABLE_CUDASIM = 1  # before anything imports numba.cuda
