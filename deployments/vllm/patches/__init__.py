"""Corrections of vLLM 0.32 by replaced methods, each refused when the method is not as expected."""
