"""Tasks that transformers' own pipelines run: classification, speech recognition and others."""
