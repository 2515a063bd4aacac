"""Benchmarks: blockproto beside other programs on the same machine, in pairs, and beside the bare floor."""
