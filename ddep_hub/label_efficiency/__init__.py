"""The label-efficiency study: many runs of both scripts, one row of a table each, and what the rows say."""
