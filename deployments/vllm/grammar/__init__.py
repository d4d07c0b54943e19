"""Compiles the grammars of requests in processes of their own before the engine gets them."""
