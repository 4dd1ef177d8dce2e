"""The login node's side of SLURM: batch scripts, submission, what is going on in run folders.  Imports no torch."""
