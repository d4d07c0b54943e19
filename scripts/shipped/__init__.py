"""Makes the data, the starting weights and the checks of the two models that ship trained.

Does not train: `truthgpt train` does, from the configurations in configs/models.
"""
