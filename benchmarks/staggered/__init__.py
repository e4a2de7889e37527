"""The parts of benchmarks/neuralstagger.py: problems, classical solvers, trainings, speed."""
