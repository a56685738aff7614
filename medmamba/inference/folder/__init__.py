"""Prediction of a folder of images: jobs, worker processes, pseudonyms, reproduction."""
