"""The protocol without IO and without a clock: frames read, streams judged, a session driven.

framing   bytes in, frames out
streams   the transition table that both ends run
events    what a session says, and what its limits are
session   one end of a connection as a machine
"""
