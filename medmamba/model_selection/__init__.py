"""Cross-validation chooses the ensemble, the thresholds and the limits of quality control."""
