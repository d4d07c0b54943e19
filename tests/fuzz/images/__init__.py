"""Random requests for the step engine against stock pipelines: `python -m tests.fuzz.images`."""
