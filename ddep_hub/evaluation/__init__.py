"""Evaluation: metrics, denoising error, pictures."""
