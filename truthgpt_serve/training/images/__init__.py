"""The loops that train image models, on accelerate: denoisers and autoencoders of Diffusers.

Knows nothing of Ray, of the command line and of text models.
"""
