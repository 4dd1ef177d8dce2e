"""What a model and its plan are both made of: sizes, widths, grids, token counts, stages.  Imports no torch."""
