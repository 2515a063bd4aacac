"""Who answers: what stands between a listening socket and the transfers, and what an operator sees of it.

socket (opened or passed) → doorway → reception → server → requests
                            arrivals
↓
logs · metrics
"""
