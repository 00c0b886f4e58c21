"""A benchmark is a file of benchmarks/; dense features and readers of data are beneath."""
