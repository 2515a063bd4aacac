"""Serving: from a listening socket to the handlers of requests.

socket (opened or passed) → acceptor → detect → server → handlers
                            handshake_slots
"""
