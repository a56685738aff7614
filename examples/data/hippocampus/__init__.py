"""The demonstration's data as a package, so that an installed medmamba has it too."""
