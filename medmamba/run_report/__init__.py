"""RUN/report/index.html: the run as one page for a person, with nothing to load from elsewhere."""
