"""A trained model on disk: run folder, checkpoints, output channels, folds that predict together."""
