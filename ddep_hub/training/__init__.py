"""Training: arguments, and the training loop shared by pretraining and fine-tuning."""
