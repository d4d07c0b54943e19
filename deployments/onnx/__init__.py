"""The family `onnxruntime`: runs .onnx files, tensors in and tensors out."""
