"""What this machine does with a recipe, part by part: step, data, exchange, checkpoint, start-up.  Figures to read, and JSON."""
