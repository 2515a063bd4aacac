"""The client: connecting, reconnecting, authentication and trust, requests, and transfers of one and of many files.

    client → upload_one · upload_many · download · download_many · request → connections → dial · trust · authenticate

``transfer`` sends and receives the bytes; this room decides which connection is used, and what happens when it is lost.
"""
