"""From a config to a run: check it, build its objects, train, and leave the results."""
