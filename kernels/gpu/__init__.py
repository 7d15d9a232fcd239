"""The Triton backend: `backend` is what `dispatch` imports, the other modules hold one family of kernels each.

Every module here can be imported where there is no GPU, so that `kernels.inspect` can compile its kernels ahead of
time; only `backend` insists on a device.
"""

NO_DEVICE = "Triton needs a GPU, or TRITON_INTERPRET=1 set before triton is imported"
