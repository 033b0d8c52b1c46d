"""What aioabort costs and gains, next to its peers: ``python -m tests.benchmarks``."""
