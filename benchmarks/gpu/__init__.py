"""All that only a GPU can show, part by part, in one command: `python -m benchmarks.gpu`. See `__main__.py`."""
