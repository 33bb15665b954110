"""Speed and memory, side by side with other brokers in the same run. `python -m tests.bench --help`."""
