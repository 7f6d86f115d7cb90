"""The label-efficiency study: many runs of pretraining and fine-tuning, one row per run, and what the rows say."""
