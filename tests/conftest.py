"""Where there is no CUDA device, kernels for it run in numba's simulator."""

import numba
import torch

if not torch.cuda.is_available():
    numba.config.ENABLE_CUDASIM = 1  # before anything imports numba.cuda
