"""What a user starts: evaluation and prediction, from their arguments to their files."""
