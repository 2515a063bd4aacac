"""Servers and clients of ours with one rule broken: each must be noticed by a case that names the rule."""
