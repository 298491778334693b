"""Optimizers (torch's, fused where that is possible, and Muon) and learning-rate schedules over fractions of a run."""
