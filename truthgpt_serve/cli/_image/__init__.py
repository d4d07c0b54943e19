"""The parts of `truthgpt image`: the request, the files, and how a terminal shows an image."""
