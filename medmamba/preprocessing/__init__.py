"""From a case on its native grid to an array on the plan's grid, and the way back."""
