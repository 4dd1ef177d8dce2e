"""What lets a run end well whatever happens to it: signals, skipped batches, the outcome file."""
