"""Programs of other people, each run in its own environment by benchmarks/solvers.py."""
