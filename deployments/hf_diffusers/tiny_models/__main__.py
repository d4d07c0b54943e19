"""Makes the default image model from the command line; knows nothing else."""

from deployments.hf_diffusers.tiny_models.default_model import main

if __name__ == "__main__":
    main()
