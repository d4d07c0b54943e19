"""Model families, one folder each; found by entry point, never imported by `truthgpt_serve`."""
