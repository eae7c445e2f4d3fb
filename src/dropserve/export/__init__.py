"""Export: the audit, TorchScript, ONNX, trunk and head, parity, the archive."""
