"""The parts of `truthgpt init`: what a model is, its file, and its entry in the Serve file."""
