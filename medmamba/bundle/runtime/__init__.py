"""What a bundle carries beside the copied sources: these files become ``scripts/<name>.py`` of the bundle."""
