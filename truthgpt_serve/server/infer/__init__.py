"""The route `/v1/infer`: inputs and outputs as the class defines them."""
