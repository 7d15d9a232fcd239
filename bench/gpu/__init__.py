"""The parts of `bench/gpu.sh`: one run on a machine with a GPU, of at most ten minutes."""
