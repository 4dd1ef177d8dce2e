"""Ranks, devices and the engines that train one model on many of them.  Importing this package loads no torch."""
