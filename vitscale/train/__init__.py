"""Training: the program that everything else serves.  run.py reads from top to bottom."""
