"""Preprocessing of a case from its native grid to the plan's grid."""
