"""Training a model from its YAML: `truthgpt train`.

Knows no family and no engine. The loops in `text` and `images` alone import the libraries that
train.
"""
