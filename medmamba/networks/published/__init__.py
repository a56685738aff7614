"""Networks exactly as published, for their weights and for golden tensors."""
