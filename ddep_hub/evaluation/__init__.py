"""Evaluation: metrics, denoising error, figures."""
