"""The patch network of a bundle in formats that other runtimes load: TorchScript, torch.export, ONNX."""
