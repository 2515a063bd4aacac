"""Who answers: what stands between a listening socket and the transfers, and what an operator sees of it.

socket (opened or passed) → acceptor → detect → server → handlers
                            handshake_slots
↓
logs · metrics
"""
