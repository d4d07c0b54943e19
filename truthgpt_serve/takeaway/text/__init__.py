"""Conversions of text models, by transformers, peft, ONNX and GGUF."""
