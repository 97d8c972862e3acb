"""ONNX models as files and in memory: load, check, name, expand functions, offload large weights, write."""
