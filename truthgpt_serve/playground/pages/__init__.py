"""The pages of the playground, one module each, and what they compute."""
