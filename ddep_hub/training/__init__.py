"""Training: arguments, the loop both scripts share, and what each of them trains."""
