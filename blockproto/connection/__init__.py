"""One connection on Trio: bytes in and out, whose turn it is, how fast the line is.

endpoint    a socket or any Trio stream
scheduler   who may write next
pace        how long a piece should be
dispatch    who takes the events of which stream
connection  one byte stream driven by one session
"""
