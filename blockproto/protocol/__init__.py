"""The protocol without IO and without a clock: frames, streams, sessions.

framing   bytes in, frames out
streams   the transition table of both ends
events    what a session says, and what its limits are
session   one end of a connection as a machine
"""
