"""Crashes of the local store: the order of its writes, kills at every call, real power cuts, and mutants of the order."""
