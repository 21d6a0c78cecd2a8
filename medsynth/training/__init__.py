"""Loops that yield records, weight averages, checkpoints and the latent store."""
