"""Deterministic simulation: real clients and a real server; clock, lines and disks are simulated. See README.md."""
