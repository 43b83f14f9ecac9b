"""What memlayer costs, each figure beside its floor in the same run: `make bench`, or python -m benchmarks --help."""
