"""Training: data sets, batches, the loop and its events."""
