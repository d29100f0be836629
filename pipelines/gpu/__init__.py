"""What one GPU is asked in ten minutes without a network (jobs/bench_gpu.py)."""
