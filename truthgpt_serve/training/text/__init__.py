"""The loops that train text models, on the trainers of transformers and trl.

Knows nothing of Ray, of the command line and of images.
"""
