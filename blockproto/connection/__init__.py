"""One connection on Trio: reading, writing, fairness between streams, and the end.

endpoint    a socket or any Trio stream
connection  one byte stream driven by one session
dispatch    which handler gets the events of which stream
writer      control frames and payload, in turn
scheduler   which task may write next
pace        how much payload may be under way
"""
