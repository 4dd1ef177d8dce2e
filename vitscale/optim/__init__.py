"""Schedule, parameter groups, optimizer and averaged weights.  `vitscale.optim.schedule` needs no torch, so nothing is imported here."""
