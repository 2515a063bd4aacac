"""Servers and clients with one honest mistake each, made from the text of the specification alone."""
