"""Models kept open in one process for many askers."""
