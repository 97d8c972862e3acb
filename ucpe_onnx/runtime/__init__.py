"""Everything that runs a model in onnxruntime: sessions, feeds, verification, accuracy, latency."""
