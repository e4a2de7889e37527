"""What benchmarks/lpinn.py compares with: physics-informed networks as they are usually trained, and other programs."""
