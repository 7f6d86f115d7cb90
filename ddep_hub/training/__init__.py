"""Training: arguments, the loop that pretraining and fine-tuning share, and what each of them trains."""
