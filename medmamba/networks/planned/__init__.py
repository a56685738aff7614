"""Networks that take their numbers from a plan, one file for each name of --network."""
