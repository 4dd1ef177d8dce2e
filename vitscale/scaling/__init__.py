"""From a sweep recipe to many runs, from their points to a scaling law, from the law to the next run.  Imports no torch."""
