"""Models in this process, without a server: what `truthgpt infer`, programs and notebooks use."""

from truthgpt_serve.runner.build import build_async_model, build_model, run_infer, run_stream

__all__ = ["build_async_model", "build_model", "run_infer", "run_stream"]
