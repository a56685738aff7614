"""From a dataset folder to a planned run: measure, plan, preprocess, and the page about it."""
