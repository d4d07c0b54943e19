"""What a request's inputs become: the arguments of a stock pipeline's call."""
