"""Label-efficiency studies: many runs of pretraining and fine-tuning, one row per run, and a report."""
