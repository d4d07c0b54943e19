"""The parts of `truthgpt why`: what is found out, and how it is told."""
