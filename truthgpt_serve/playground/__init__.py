"""The playground at `/ui`: pages that use the service over HTTP as any client does.

Only `application` is imported by others; the modules that import Gradio are imported by the replica
that serves the page.
"""
