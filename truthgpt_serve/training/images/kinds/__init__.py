"""The kinds of pipelines that can be trained."""
